"""Evaluation of a suite: numbers are those of the embeddings, finished sets are kept, errors name
the set.
"""

import os

import numpy as np
import pandas as pd
import pytest
import torch
from data_files import TEMPLATES as TEMPLATES_FILE
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from small_suite import CAPTIONS, CLASSES, LEFT, ONE, make_small_suite, write_captions
from small_suite import write_classes as write_small_classes
from torch.utils.data import DataLoader

import cibr
from cibr import evaluate as engine
from cibr.data import load_pairs
from cibr.evaluate import Evaluation, Predictions, Task, compare, evaluate
from cibr.metrics import query_scores, retrieval_recalls
from cibr.models import DualEncoder, features

needs_all = pytest.mark.skipif(
    not (os.environ.get("CIBR_DATA") and os.environ.get("CIBR_MODELS")),
    reason="CIBR_DATA or CIBR_MODELS unset",
)


@pytest.fixture
def small(tmp_path, monkeypatch):
    return make_small_suite(tmp_path, monkeypatch)


def values(rows, task):
    of_task = rows[(rows["dataset"] == task.title) & (rows["kind"] == task.kind)]
    return of_task.set_index("metric")["value"].to_dict()


def test_ranks_and_average_precisions_are_those_of_the_embeddings(build, small):
    model, pairs = build("tiny").train(), load_pairs("captions", "test")
    found = evaluate(model, "small", name="m")
    assert model.training and "accuracy@5" not in values(found.rows, LEFT)
    assert (
        found.predictions[ONE].items["labels"].tolist() == load_pairs("one", "test").labels.tolist()
    )
    images, texts = model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts())
    scores = query_scores(images, texts, torch.arange(14), pairs.text_to_image())
    row = values(found.rows, CAPTIONS)
    for side, direction in (("image", "image_to_text"), ("text", "text_to_image")):
        ranks, precisions = (
            getattr(scores, f"{side}_{name}") for name in ("ranks", "average_precisions")
        )
        assert row[f"{direction}_mean_average_precision"] == pytest.approx(
            precisions.double().mean().item()
        )
        assert row[f"{direction}_median_rank"] == np.median(ranks) + 1
    assert (
        found.rows.set_index("metric").loc["text_to_image_recall@1", "n"]
        == len(texts)
        > len(images)
    )


def test_images_of_one_text_are_all_right_and_the_text_stands_once(build, small):
    write_captions(
        small / "wds_shared",
        [["a red cat"], ["a big dog"], ["a red cat"], ["a car"], ["a big dog"]],
    )
    task, model, pairs = Task("shared", "retrieval"), build("tiny"), load_pairs("shared", "test")
    rows = evaluate(model, [task], name="m").rows
    images, texts = model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts())
    expected = retrieval_recalls(pairs, images, texts)
    assert set(expected) == {f"{d}_label_recall@1" for d in ("image_to_text", "text_to_image")}
    found = values(rows, task)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    n = rows.set_index("metric")["n"]
    assert (n["image_to_text_label_recall@1"], n["text_to_image_label_recall@1"]) == (5, 3)


def test_a_group_counts_as_one_set_in_the_mean_of_the_suite_and_scores_lie_in_their_intervals(
    build, small
):
    rows = evaluate(build("tiny"), "small", name="m").rows
    value = rows.set_index(["dataset", "metric"])["value"]
    for metric in ("accuracy@1", "mean_per_class_accuracy"):
        both = (value["left", metric] + value["right", metric]) / 2
        assert value["sides", metric] == pytest.approx(both)
        assert value["mean of 2", metric] == pytest.approx((value["one", metric] + both) / 2)
    means = rows[rows["dataset"] == "mean of 2"]
    assert set(means["metric"]) == {"accuracy@1", "mean_per_class_accuracy"} and set(
        means["n"]
    ) == {36}
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert (rows["low"] < rows["high"]).any() and not rows.isna().any().any()
    assert rows["low"].min() >= 0 and rows["high"][~rows["metric"].str.contains("rank")].max() <= 1


def test_a_limit_draws_some_images_and_keeps_all_classes_to_choose_from(build, small):
    found = evaluate(build("tiny"), "small", name="m", limit=5).predictions
    assert len(found[ONE].items["labels"]) == 5 and found[ONE].items["n_classes"] == 6
    assert len(set(found[LEFT].items["labels"].tolist())) > 1
    assert len(found[CAPTIONS].items["image_ranks"]) == 5 < len(found[CAPTIONS].items["text_ranks"])


def test_a_suite_of_ones_own_is_a_yaml_file_or_a_list_of_tasks(build, small, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "- dataset: one\n- {dataset: left, group: sides}\n- {dataset: captions, kind: retrieval}\n"
    )
    model = build("tiny")
    found = evaluate(model, file, name="m", output_dir=tmp_path)
    assert found.suite == "own" and (tmp_path / "own" / "rows.csv").is_file()
    assert list(found.predictions) == [ONE, LEFT, CAPTIONS]
    listed = evaluate(model, [Task(str(small / "wds_one")), LEFT, CAPTIONS], name="m")
    assert listed.suite == "tasks" and listed.rows["value"].equals(found.rows["value"])


def test_a_data_set_is_asked_what_it_can_answer(small):
    assert engine.dataset_tasks("one") == (ONE,)
    assert engine.dataset_tasks("captions") == (CAPTIONS,)
    assert engine.dataset_tasks(str(small / "wds_captions"))[0].title == "captions"
    (small / "wds_one" / TEMPLATES_FILE).unlink()
    with pytest.raises(ValueError, match=f"one .* {TEMPLATES_FILE}"):
        engine.dataset_tasks("one")


def test_one_kind_of_a_suite_gives_the_rows_of_that_kind_and_keeps_them_apart(
    build, small, tmp_path
):
    whole = evaluate(build("tiny"), "small", name="m", output_dir=tmp_path).rows
    for kind in ("zero-shot", "retrieval"):
        found = evaluate(build("tiny"), "small", name="m", kinds=[kind], output_dir=tmp_path).rows
        assert found.equals(whole[whole["kind"] == kind].reset_index(drop=True))
    names = ["rows-retrieval.csv", "rows-zero-shot.csv", "rows.csv"]
    assert sorted(file.name for file in (tmp_path / "small").glob("*.csv")) == names


def counted(monkeypatch):
    calls, real = [], features.embed_pairs
    monkeypatch.setattr(
        cibr.evaluate, "embed_pairs", lambda m, i, b: calls.append(i.pairs.name) or real(m, i, b)
    )
    return calls


def test_a_suite_that_failed_goes_on_at_the_set_that_failed(build, small, tmp_path, monkeypatch):
    whole = evaluate(build("tiny"), "small", name="m").rows
    templates = small / "wds_right" / TEMPLATES_FILE
    text = templates.read_text()
    templates.write_text("a cat")
    calls, out = counted(monkeypatch), tmp_path / "out"
    message = "zero-shot on right of suite 'small': .*a cat.*before it are kept in .*out"
    with pytest.raises(ValueError, match=message):
        evaluate(build("tiny"), "small", name="m", output_dir=out)
    templates.write_text(text)
    for _ in range(2):
        assert evaluate(build("tiny"), "small", name="m", output_dir=out).rows.equals(whole)
        assert calls == ["one", "left", "right", "captions"]
    assert engine.read_evaluation(out, "small", "m").rows.equals(whole)
    file = out / "small" / LEFT.file
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(
        FileNotFoundError, match="left-zero-shot.safetensors.* is missing or damaged"
    ):
        engine.read_evaluation(out, "small", "m")
    evaluate(build("tiny"), "small", name="m", output_dir=out)
    assert calls[4:] == ["left"]


@pytest.mark.parametrize("change", ["weights", "templates", "limit", "images"])
def test_what_has_changed_is_evaluated_again_and_said(build, small, tmp_path, monkeypatch, change):
    model, limit = build("tiny"), 0
    evaluate(model, "small", name="m", output_dir=tmp_path)
    if change == "weights":
        model.backbone.image_head[2].weight.data.neg_()
    elif change == "templates":
        (small / "wds_left" / TEMPLATES_FILE).write_text("the {c}")
    elif change == "images":
        write_small_classes(small / "wds_left", [0, 1, 2, 3] * 3, 300, classes=CLASSES[:4])
    else:
        limit = 6
    calls = counted(monkeypatch)
    other = "another model" if change == "weights" else "other images or texts"
    with pytest.warns(UserWarning, match=f"holds results of {other}: .* is evaluated again"):
        evaluate(model, "small", name="m", limit=limit, output_dir=tmp_path)
    assert calls == (
        ["left"] if change in ("templates", "images") else ["one", "left", "right", "captions"]
    )


def test_errors_name_the_set_the_sample_and_the_suite(build, small, monkeypatch):
    write_small_classes(small / "wds_left", [0, 1, 9], 100)
    with pytest.raises(
        ValueError, match="zero-shot on left of suite 'small': sample 's2' of .*wds_left"
    ):
        evaluate(build("tiny"), "small", name="m")
    found = evaluate(build("tiny"), "small", name="m", max_skipped=1)
    assert len(found.predictions[LEFT].items["labels"]) == 2
    write_captions(small / "wds_same", [["a cat"], ["a cat"]])
    with pytest.raises(
        ValueError, match="retrieval on same of suite 'tasks': all images match one another"
    ):
        evaluate(build("tiny"), [Task("same", "retrieval")], name="m")
    calls = counted(monkeypatch)
    with pytest.raises(ValueError, match="there is no data set 'absent'"):
        evaluate(build("tiny"), [ONE, Task("absent")], name="m")
    with pytest.raises(NotADirectoryError, match="classnames.txt"):
        evaluate(build("tiny"), "small", name="m", output_dir=small / "wds_one" / "classnames.txt")
    assert not calls


class Peer:
    """A model as CLIP_benchmark wants it: token ids and their mask travel as one tensor."""

    def __init__(self, model):
        self.model = model.eval()

    def tokenize(self, texts):
        return torch.stack(self.model.tokenize(texts))

    def encode_text(self, tokens):
        return self.model.encode_texts(*tokens).features

    def encode_image(self, pixels):
        return self.model.encode_images(self.model.normalise(pixels)).features

    def transform(self, image):
        return self.model.preprocess([image])[0]


# webdataset warns of a setting that CLIP_benchmark leaves out, and leaves its files to be closed by
# chance.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.filterwarnings("ignore:WebDataset\\(shardshuffle")
@pytest.mark.parametrize("kind", ["tiny", "frozen", "clip"])
def test_scores_equal_those_of_clip_benchmark(build, small, kind):
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval

    model = build(kind)
    found, peer = (
        evaluate(model, "small", name="m").rows.set_index(["dataset", "metric"])["value"],
        Peer(model),
    )

    def loader(name, collate_fn=None):
        dataset = builder.build_wds_dataset(
            "wds", peer.transform, "test", str(small / f"wds_{name}")
        )
        return dataset, DataLoader(dataset, batch_size=5, collate_fn=collate_fn)

    for name, ks in (("one", (1, 5)), ("left", (1,)), ("right", (1,))):
        dataset, batches = loader(name)
        parts = dataset.classes, dataset.templates, "cpu", False
        classifier = zeroshot_classification.zero_shot_classifier(peer, peer.tokenize, *parts)
        logits, labels = zeroshot_classification.run_classification(
            peer, classifier, batches, "cpu", amp=False
        )
        for k in ks:  # their own count of hits fails with NumPy 2.4
            hits = top_k_accuracy_score(labels, logits, k=k, labels=range(logits.shape[1]))
            assert found[name, f"accuracy@{k}"] == pytest.approx(hits)
        per_class = balanced_accuracy_score(labels, logits.argmax(1))
        assert found[name, "mean_per_class_accuracy"] == pytest.approx(per_class)
    _, batches = loader("captions", collate_fn=builder.image_captions_collate_fn)
    ks = [1, 5, 10]
    expected = zeroshot_retrieval.evaluate(
        peer, batches, peer.tokenize, "cpu", amp=False, recall_k_list=ks
    )
    for ours, theirs in (("text_to_image", "image_retrieval"), ("image_to_text", "text_retrieval")):
        recalls = [found["captions", f"{ours}_recall@{k}"] for k in ks]
        assert recalls == pytest.approx([expected[f"{theirs}_recall@{k}"] for k in ks])


def test_a_model_differs_from_itself_by_nothing_and_a_comparison_is_antisymmetric(build, small):
    a, b = (evaluate(build(kind), "small", name=kind) for kind in ("tiny", "clip"))
    same, there, back = compare(a, a), compare(a, b), compare(b, a)
    assert (same[["difference", "low", "high"]].to_numpy() == 0).all()
    assert there["difference"].tolist() == pytest.approx((-back["difference"]).tolist())
    assert there["difference"].tolist() == pytest.approx((there["b"] - there["a"]).tolist())
    assert there["low"].tolist() == pytest.approx((-back["high"]).tolist())
    rows = a.rows.set_index(["dataset", "metric"])["value"]
    keys = zip(there["dataset"], there["metric"], strict=True)
    assert there["a"].tolist() == pytest.approx([rows[key] for key in keys])
    both = compare([a, b], [b, a])  # seeds are paired by place
    assert both["difference"].tolist() == pytest.approx([0.0] * len(both))
    assert set(both["n_seeds"]) == {2} and both["high"].max() > 0


def rows_of(task, **items):
    items = {name: torch.tensor(each) for name, each in items.items()}
    return Evaluation("m", "small", {task: Predictions(task.kind, items, "")}).rows.set_index(
        "metric"
    )


def retrieved(text_ranks, text_units, n_images):
    """Rows of texts with these ranks, whose images are all found at once."""
    images = dict(image_ranks=[0] * n_images, image_average_precisions=[1.0] * n_images)
    texts = dict(
        text_ranks=text_ranks, text_average_precisions=[1 / (1 + rank) for rank in text_ranks]
    )
    return rows_of(
        CAPTIONS, **images, **texts, image_units=list(range(n_images)), text_units=text_units
    )


def test_texts_of_one_image_count_once_in_an_interval():
    n_images, share = 200, 0.3
    units = [i for i in range(n_images) for _ in range(5)]
    ranks = [0 if unit < share * n_images else 7 for unit in units]
    row = retrieved(ranks, units, n_images).loc["text_to_image_recall@1"]
    half = (
        1.96 * (share * (1 - share) / n_images) ** 0.5
    )  # of independent images; texts would halve it
    assert row["value"] == pytest.approx(share) and row["n"] == 1000
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.1)
    many = [i for i, n in enumerate([1] * 50 + [9] * 50) for _ in range(n)]
    row = retrieved([0] * 500, many, 100).loc["text_to_image_recall@1"]
    assert (row["low"], row["value"], row["high"]) == pytest.approx(
        (1, 1, 1)
    )  # not 1 give or take a tenth


def test_mean_per_class_accuracy_draws_images_within_their_classes():
    rows = rows_of(ONE, labels=[0] * 30 + [1] * 3, ranks=[0] * 30 + [2] * 3, n_classes=5)
    row = rows.loc["mean_per_class_accuracy"]
    assert (row["value"], row["low"], row["high"]) == (0.5, 0.5, 0.5)
    assert rows.loc["accuracy@1", "low"] < 30 / 33 < rows.loc["accuracy@1", "high"]


def test_the_table_has_a_line_a_set_and_a_column_a_metric_and_names_are_short():
    assert engine.short_names("x/a/seed-0", "x/b/seed-0/") == ["a/seed-0", "b/seed-0"]
    assert engine.short_names("a", "a") == ["a", "a"] and engine.short_names("a", "/a") == [
        "a",
        "/a",
    ]
    columns = ["dataset", "metric", "value", "low", "high"]
    given = [("b", "m@1", 0.5, 0.25, 0.75), ("b", "rank", 2, 1, 3), ("a", "m@1", 1, 1, 1)]
    rows = pd.DataFrame(given, columns=columns)
    table = engine.format_table(rows)
    assert (list(table.index), list(table.columns)) == (["b", "a"], ["m@1", "rank"])
    assert (
        table.loc["b"].tolist() == ["50.0 [25.0, 75.0]", "2.0 [1.0, 3.0]"]
        and table.loc["a", "rank"] == ""
    )


@pytest.mark.data
@pytest.mark.models
@needs_all
def test_the_mini_suite_runs_on_photos(monkeypatch, tmp_path):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path)
    torch.manual_seed(0)
    rows = evaluate(DualEncoder.frozen(dim=64, image_size=64), "mini", name="m", limit=8).rows
    assert {"pacs", "mean of 7", "flickr8k", "pacs-sketch"} <= set(rows["dataset"])
    assert "image_to_text_recall@1" in set(rows["metric"])
