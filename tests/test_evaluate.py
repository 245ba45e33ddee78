"""Evaluation of a suite: numbers are those of the embeddings, errors name the set."""

import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from small_suite import CAPTIONS, LEFT, ONE, noise, write_captions
from torch.utils.data import DataLoader

from cibr import evaluate as engine
from cibr.data import load_pairs
from cibr.evaluate import Task, difference, evaluate, evaluate_pairs, suite_tasks
from cibr.metrics import proportion_interval, retrieval_recalls


def by_metric(evaluation, dataset):
    rows = evaluation.rows
    return rows[rows["dataset"] == dataset].set_index("metric")


def embedded(model, pairs):
    return model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts())


def test_images_of_one_text_are_all_correct_and_the_text_stands_once(build, small):
    captions = ["a red cat", "a big dog", "a red cat", "a car " * 50, "a big dog"]
    write_captions(small / "wds_shared", [[caption] for caption in captions], noise(500))
    model, pairs = build("tiny"), load_pairs("shared", "test")
    with pytest.warns(UserWarning, match="1 of 5 texts of shared-test are cut to the 64 tokens"):
        rows = by_metric(evaluate(model, [Task("shared")], name="m"), "shared")
    expected = retrieval_recalls(*embedded(model, pairs), *pairs.retrieval_targets())
    assert set(expected) == {f"{d}_label_recall@1" for d in ("image_to_text", "text_to_image")}
    for name, recall in expected.items():
        assert (rows.loc[name, "value"], rows.loc[name, "n"]) == (pytest.approx(recall), 3)


def test_a_group_counts_as_one_set_in_the_mean(build, small):
    rows = evaluate(build("tiny"), "small", name="m").rows
    value = rows.set_index(["dataset", "metric"])["value"]
    for metric in ("accuracy@1", "mean_per_class_accuracy"):
        both = (value["left", metric] + value["right", metric]) / 2
        assert value["sides", metric] == pytest.approx(both)
        assert value["mean of 2", metric] == pytest.approx((value["one", metric] + both) / 2)
    means = rows[rows["dataset"] == "mean of 2"]
    assert set(means["n"]) == {36} and not rows.duplicated(["dataset", "metric"]).any()


def test_a_suite_of_ones_own_is_a_list_of_tasks_and_named_after_its_only_data_set(build, small):
    model = build("tiny")
    listed = evaluate(model, [Task(str(small / "wds_one")), LEFT], name="m")
    apart = evaluate(model, [ONE], name="m")
    assert (listed.suite, apart.suite) == ("tasks", "one")
    assert by_metric(listed, "one")["value"].equals(by_metric(apart, "one")["value"])
    assert Task("a/wds_b", split="test_c").title == "b/test_c"


def test_a_data_set_has_a_task_by_its_contents_on_the_best_of_its_splits(small):
    assert engine.dataset_tasks("one") == (Task("one"),)
    folder = small / "wds_captions"
    for split in ("train", "val"):
        shutil.copytree(folder / "test", folder / split)
    for split, place in (("test", "test"), ("validation", "val"), ("validation", "train")):
        (task,) = engine.dataset_tasks(str(folder))
        assert task == Task(str(folder), split)
        shutil.rmtree(folder / place)


def test_scores_are_saved_and_the_model_stays_as_it_was(build, small, tmp_path):
    model = build("tiny").train()
    whole = evaluate(model, "small", name="m", output_dir=tmp_path)
    assert model.training
    written = pd.read_csv(tmp_path / "small" / "rows.csv")
    pd.testing.assert_frame_equal(written, whole.rows)


def test_images_that_all_match_are_refused_by_the_name_of_their_set(build, small):
    write_captions(small / "wds_same", [["a cat"], ["a cat"]], noise(500))
    with pytest.raises(ValueError, match="all images of same match one another"):
        evaluate(build("tiny"), [Task("same")], name="m")


class Peer:
    """A model as CLIP_benchmark wants it: token ids and their mask travel as one tensor."""

    def __init__(self, model):
        self.model = model.eval()

    def tokenize(self, texts):
        return torch.stack(self.model.tokenize(texts))

    def encode_text(self, tokens):
        return self.model.encode_texts(*tokens).features

    def encode_image(self, pixels):
        return self.model.encode_images(pixels).features

    def transform(self, image):
        return self.model.preprocess([image])[0]


# webdataset warns of a setting that CLIP_benchmark leaves out, and leaves its files to be closed by
# chance.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:WebDataset\\(shardshuffle")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.extra
@pytest.mark.parametrize("kind", ["frozen", "hub"])
def test_scores_equal_those_of_clip_benchmark(build, small, kind):
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    model = build(kind)
    ours = evaluate(model, "small", name="m").rows.set_index(["dataset", "metric"])["value"]
    peer = Peer(model)

    def load(name, collate_fn=None):
        folder = str(small / f"wds_{name}")
        dataset = builder.build_wds_dataset("wds", peer.transform, "test", folder)
        return dataset, DataLoader(dataset, batch_size=5, collate_fn=collate_fn)

    for name in ("one", "left", "right"):
        dataset, batches = load(name)
        parts = dataset.classes, dataset.templates, "cpu", False
        classifier = zeroshot_classification.zero_shot_classifier(peer, peer.tokenize, *parts)
        logits, labels = zeroshot_classification.run_classification(
            peer, classifier, batches, "cpu", amp=False
        )
        hits = accuracy_score(labels, logits.argmax(1))  # theirs fails with NumPy 2.4
        assert ours[name, "accuracy@1"] == pytest.approx(hits)
        per_class = balanced_accuracy_score(labels, logits.argmax(1))
        assert ours[name, "mean_per_class_accuracy"] == pytest.approx(per_class)
    _, batches = load("captions", collate_fn=builder.image_captions_collate_fn)
    options = dict(amp=False, recall_k_list=[1, 5, 10])
    theirs = zeroshot_retrieval.evaluate(peer, batches, peer.tokenize, "cpu", **options)
    for k in (1, 5, 10):
        for direction, name in (("text_to_image", "image"), ("image_to_text", "text")):
            recall = ours["captions", f"{direction}_recall@{k}"]
            assert recall == pytest.approx(theirs[f"{name}_retrieval_recall@{k}"])


def test_a_comparison_is_of_b_minus_a_by_item_and_pairs_seeds_by_place(build, small):
    a, b = (evaluate(build(kind), "small", name=kind) for kind in ("tiny", "hub"))
    there, back = difference(a, b), difference(b, a)
    keys = ["suite", "dataset", "kind", "metric", "n"]
    assert there[keys].equals(a.rows[keys])
    values = there[["a", "b", "difference", "low"]].to_numpy()
    own, other = a.rows["value"], b.rows["value"]
    expected = np.stack([own, other, other - own, -back["high"]], axis=1)
    assert values == pytest.approx(expected)
    assert (difference(a, a)[["difference", "low", "high"]] == 0).all(axis=None)
    seeds = difference([a, b], [b, b])
    assert set(seeds["n_seeds"]) == {2}
    half = there["difference"] / 2
    assert seeds[["a", "difference"]].to_numpy() == pytest.approx(np.stack([other - half, half], 1))


def test_an_interval_is_over_images_with_their_texts(build, small):
    model, pairs = build("tiny"), load_pairs("captions", "test")
    row = by_metric(evaluate(model, [CAPTIONS], name="m"), "captions").loc["text_to_image_recall@5"]
    images, texts = embedded(model, pairs)
    own = pairs.text_to_image()
    ranks = (texts @ images.T).argsort(1, descending=True).eq(own[:, None]).int().argmax(1)
    hits = (ranks < 5).double()
    of_images = torch.zeros(len(pairs)).double().index_add(0, own, hits - hits.mean())
    values = hits.mean() + of_images * len(pairs) / len(texts)
    expected = proportion_interval(values.numpy())
    assert row["n"] == len(pairs)
    assert row[["value", "low", "high"]].tolist() == pytest.approx(expected)


def test_the_table_has_a_line_a_set_and_a_column_a_metric():
    given = [("b", "m@5", 0.5), ("b", "m@1", -0.25), ("a", "m@5", 1)]
    rows = pd.DataFrame(given, columns=["dataset", "metric", "difference"])
    table = engine.format_table(rows.assign(low=-1, high=1), "difference")
    assert (list(table.index), list(table.columns)) == (["b", "a"], ["m@5", "m@1"])
    assert table.loc["b"].tolist() == ["+50.0 [-100.0, +100.0]", "-25.0 [-100.0, +100.0]"]
    assert table.loc["a", "m@1"] == ""


def test_evaluations_on_other_texts_or_images_are_not_compared(build, small):
    model, pairs = build("tiny"), load_pairs("captions", "test")
    texts = replace(pairs, captions=[*pairs.captions[1:], pairs.captions[0]])
    images = replace(pairs, load=lambda i: pairs.image(-1 - i))
    a, *others = (evaluate_pairs(model, of, "m") for of in (pairs, texts, images))
    for b in others:
        with pytest.raises(ValueError, match="different images or texts of captions"):
            difference(a, b)


def test_chance_stands_beside_scores(build, small):
    evaluation = evaluate(build("tiny"), "small", name="m")
    rows = evaluation.rows.set_index(["dataset", "metric"])
    for task in suite_tasks("small"):
        pairs = load_pairs(task.dataset, task.split)
        if pairs.classnames:
            counts = torch.bincount(pairs.labels)
            share = counts.max().item() / len(pairs)
            assert rows.loc[(task.title, "accuracy@1"), "chance"] == pytest.approx(share)
            n_seen = int((counts > 0).sum())
            per_class = rows.loc[(task.title, "mean_per_class_accuracy"), "chance"]
            assert per_class == pytest.approx(1 / n_seen)
    chance = rows["chance"].xs("accuracy@1", level="metric")
    assert chance["sides"] == pytest.approx((chance["left"] + chance["right"]) / 2)
    assert chance["mean of 2"] == pytest.approx((chance["one"] + chance["sides"]) / 2)
    n = len(load_pairs("captions", "test"))
    assert rows.loc[("captions", "text_to_image_recall@1"), "chance"] == pytest.approx(1 / n)
