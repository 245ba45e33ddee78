"""Evaluation of a suite: numbers are those of the embeddings, finished sets are kept, errors name
the set.
"""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from data_files import TEMPLATES as TEMPLATES_FILE
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
from small_suite import CAPTIONS, CLASSES, LEFT, ONE, noise, write_captions, write_classes
from torch.utils.data import DataLoader

import cibr
from cibr import evaluate as engine
from cibr.data import load_pairs
from cibr.evaluate import SUITES, Evaluation, Predictions, Task, compare, evaluate
from cibr.metrics import query_scores, retrieval_recalls
from cibr.models import features


def by_metric(evaluation, dataset):
    rows = evaluation.rows
    return rows[rows["dataset"] == dataset].set_index("metric")


def embedded(model, pairs):
    return model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts(), truncate=True)


def test_average_precisions_and_median_ranks_are_those_of_the_embeddings(build, small):
    model, pairs = build("tiny").train(), load_pairs("captions", "test")
    evaluation = evaluate(model, "small", name="m")
    assert model.training
    scores = query_scores(*embedded(model, pairs), torch.arange(14), pairs.text_to_image())
    rows = by_metric(evaluation, "captions")
    for side, direction, n in (("image", "image_to_text", 14), ("text", "text_to_image", 27)):
        precision = rows.loc[f"{direction}_mean_average_precision"]
        expected = scores[f"{side}_average_precisions"].mean().item()
        assert precision["value"] == pytest.approx(expected)
        median = rows.loc[f"{direction}_median_rank"]
        assert median["value"] == np.median(scores[f"{side}_ranks"]) + 1
        assert precision["n"] == median["n"] == n


def test_images_of_one_text_are_all_correct_and_the_text_stands_once(build, small):
    captions = ["a red cat", "a big dog", "a red cat", "a car " * 50, "a big dog"]
    write_captions(small / "wds_shared", [[caption] for caption in captions], noise(500))
    model, pairs = build("tiny"), load_pairs("shared", "test")
    rows = by_metric(evaluate(model, [Task("shared", "retrieval")], name="m"), "shared")
    expected = retrieval_recalls(*embedded(model, pairs), *pairs.retrieval_targets())
    assert set(expected) == {f"{d}_label_recall@1" for d in ("image_to_text", "text_to_image")}
    for (name, recall), n in zip(expected.items(), (5, 3), strict=True):
        assert (rows.loc[name, "value"], rows.loc[name, "n"]) == (pytest.approx(recall), n)


def test_a_group_counts_as_one_set_in_the_mean_and_scores_lie_in_their_intervals(build, small):
    rows = evaluate(build("tiny"), "small", name="m").rows
    value = rows.set_index(["dataset", "metric"])["value"]
    for metric in ("accuracy@1", "mean_per_class_accuracy"):
        both = (value["left", metric] + value["right", metric]) / 2
        assert value["sides", metric] == pytest.approx(both)
        assert value["mean of 2", metric] == pytest.approx((value["one", metric] + both) / 2)
    means = rows[rows["dataset"] == "mean of 2"]
    assert list(means["metric"]) == ["accuracy@1", "mean_per_class_accuracy"]
    assert set(means["n"]) == {36} and not rows.duplicated(["dataset", "metric"]).any()
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert (rows["low"] < rows["high"]).any() and not rows.isna().any().any()
    assert rows["low"].min() >= 0 and rows["high"][~rows["metric"].str.contains("rank")].max() <= 1


def test_a_limit_draws_some_images_and_keeps_all_classes_to_choose_from(build, small):
    evaluation = evaluate(build("tiny"), "small", name="m", limit=5)
    predictions, metrics = evaluation.predictions, set(evaluation.rows["metric"])
    assert "image_to_text_recall@5" in metrics and "image_to_text_recall@10" not in metrics
    labels, n_classes = (predictions[ONE].items[name] for name in ("labels", "n_classes"))
    assert len(labels) == 5 and n_classes == 6 and len(labels.unique()) > 2  # not the first five
    retrieval = predictions[CAPTIONS].items
    assert len(retrieval["image_ranks"]) == 5 < len(retrieval["text_ranks"])
    assert len(engine.load_task(ONE, 12)) == len(engine.load_task(ONE)) == 12


def test_a_suite_of_ones_own_is_a_yaml_file_or_a_list_of_tasks(build, small, tmp_path):
    file = tmp_path / "own.yaml"
    left, captions = "{dataset: left, group: sides}", "{dataset: captions, kind: retrieval}"
    file.write_text(f"- dataset: one\n- {left}\n- {captions}\n")
    model = build("tiny")
    of_file = evaluate(model, file, name="m", output_dir=tmp_path)
    assert of_file.suite == "own" and (tmp_path / "own" / "rows.csv").is_file()
    assert list(of_file.predictions) == [ONE, LEFT, CAPTIONS]
    listed = evaluate(model, [Task(str(small / "wds_one")), LEFT, CAPTIONS], name="m")
    assert listed.suite == "tasks" and listed.rows["value"].equals(of_file.rows["value"])
    assert set(evaluate(model, [ONE], name="m").rows["dataset"]) == {"one"}
    assert Task("a/wds_b", split="test_c").file == "b-test_c-zero-shot.safetensors"
    assert Task("a", split="validation").title == "a"


def test_a_data_set_is_asked_what_it_can_answer(small):
    assert engine.dataset_tasks("one") == (ONE,)
    assert engine.dataset_tasks(str(small / "wds_captions"))[0].title == "captions"
    test, train = small / "wds_captions" / "test", small / "wds_captions" / "train"
    shutil.copytree(test, train)
    assert engine.dataset_tasks("captions") == (CAPTIONS,)
    shutil.rmtree(test)
    assert engine.dataset_tasks("captions") == (Task("captions", "retrieval", "train"),)
    (small / "wds_one" / TEMPLATES_FILE).unlink()
    with pytest.raises(ValueError, match=f"one .* {TEMPLATES_FILE}"):
        engine.dataset_tasks("one")


def test_one_kind_of_a_suite_gives_its_rows_and_keeps_them_apart(build, small, tmp_path):
    whole = evaluate(build("tiny"), "small", name="m", output_dir=tmp_path).rows
    for kind in ("zero-shot", "retrieval"):
        rows = evaluate(build("tiny"), "small", name="m", kinds=[kind], output_dir=tmp_path).rows
        assert rows.equals(whole[whole["kind"] == kind].reset_index(drop=True))
    names = ["rows-retrieval.csv", "rows-zero-shot.csv", "rows.csv"]
    assert sorted(file.name for file in (tmp_path / "small").glob("*.csv")) == names


@pytest.fixture
def calls(monkeypatch):
    """The names of the sets that are embedded."""
    calls, embed = [], features.embed_pairs

    def counted(model, inputs, batch_size):
        calls.append(inputs.pairs.name)
        return embed(model, inputs, batch_size)

    monkeypatch.setattr(cibr.evaluate, "embed_pairs", counted)
    return calls


def test_a_suite_that_failed_goes_on_at_the_set_that_failed(build, small, tmp_path, calls):
    whole = evaluate(build("tiny"), "small", name="m").rows
    calls.clear()
    templates = small / "wds_right" / TEMPLATES_FILE
    text = templates.read_text()
    templates.write_text("a cat")
    out = tmp_path / "out"
    message = "zero-shot on right of suite 'small': .*a cat.*before it are kept in .*out"
    with pytest.raises(ValueError, match=message):
        evaluate(build("tiny"), "small", name="m", output_dir=out)
    templates.write_text(text)
    for _ in range(2):
        assert evaluate(build("tiny"), "small", name="m", output_dir=out).rows.equals(whole)
        assert calls == ["one", "left", "right", "captions"]
    stored = {t: engine.read_predictions(out / "small" / t.file) for t in SUITES["small"]}
    assert Evaluation("m", "small", stored).rows.equals(whole)
    file = out / "small" / LEFT.file
    file.write_bytes(file.read_bytes()[:50])
    evaluate(build("tiny"), "small", name="m", output_dir=out)
    assert calls[4:] == ["left"]


def test_what_has_changed_is_evaluated_again_and_said(build, small, tmp_path, calls):
    model = build("tiny")
    evaluate(model, "small", name="m", output_dir=tmp_path)

    def evaluated_again(other, limit=0):
        calls.clear()
        with pytest.warns(UserWarning, match=f"holds results of {other}: .* is evaluated again"):
            evaluate(model, "small", name="m", limit=limit, output_dir=tmp_path)
        return calls

    model.backbone.image_head[2].weight.data.neg_()
    assert evaluated_again("another model") == ["one", "left", "right", "captions"]
    write_classes(small / "wds_left", [0, 1, 2, 3] * 3, noise(300), CLASSES[:4])
    assert evaluated_again("other images or texts") == ["left"]
    (small / "wds_left" / TEMPLATES_FILE).write_text("the {c}")
    assert evaluated_again("other images or texts") == ["left"]
    assert evaluated_again("other images or texts", 6) == ["one", "left", "right", "captions"]


def test_errors_name_the_set_the_sample_and_the_suite(build, small, calls):
    write_classes(small / "wds_left", [0, 1, 9], noise(100))
    message = "zero-shot on left of suite 'small': sample 's0000002' of .*left"
    with pytest.raises(ValueError, match=message):
        evaluate(build("tiny"), "small", name="m")
    predictions = evaluate(build("tiny"), "small", name="m", max_skipped=1).predictions
    assert len(predictions[LEFT].items["labels"]) == 2
    write_captions(small / "wds_same", [["a cat"], ["a cat"]], noise(500))
    with pytest.raises(ValueError, match="retrieval on same of .*: all images match one another"):
        evaluate(build("tiny"), [Task("same", "retrieval")], name="m")
    calls.clear()
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
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore:WebDataset\\(shardshuffle")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["tiny", "frozen", "clip"])
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

    for name, ks in (("one", (1, 5)), ("left", (1,)), ("right", (1,))):
        dataset, batches = load(name)
        parts = dataset.classes, dataset.templates, "cpu", False
        classifier = zeroshot_classification.zero_shot_classifier(peer, peer.tokenize, *parts)
        logits, labels = zeroshot_classification.run_classification(
            peer, classifier, batches, "cpu", amp=False
        )
        for k in ks:  # their own count of hits fails with NumPy 2.4
            hits = top_k_accuracy_score(labels, logits, k=k, labels=range(logits.shape[1]))
            assert ours[name, f"accuracy@{k}"] == pytest.approx(hits)
        per_class = balanced_accuracy_score(labels, logits.argmax(1))
        assert ours[name, "mean_per_class_accuracy"] == pytest.approx(per_class)
    assert ("left", "accuracy@5") not in ours
    _, batches = load("captions", collate_fn=builder.image_captions_collate_fn)
    options = dict(amp=False, recall_k_list=[1, 5, 10])
    theirs = zeroshot_retrieval.evaluate(peer, batches, peer.tokenize, "cpu", **options)
    for k in (1, 5, 10):
        for direction, name in (("text_to_image", "image"), ("image_to_text", "text")):
            recall = ours["captions", f"{direction}_recall@{k}"]
            assert recall == pytest.approx(theirs[f"{name}_retrieval_recall@{k}"])


def test_a_model_differs_from_itself_by_nothing_and_a_comparison_is_antisymmetric(build, small):
    a, b = (evaluate(build(kind), "small", name=kind) for kind in ("tiny", "clip"))
    same, there, back = compare(a, a), compare(a, b), compare(b, a)
    assert (same[["difference", "low", "high"]].to_numpy() == 0).all()
    assert there["difference"].tolist() == pytest.approx((-back["difference"]).tolist())
    assert there["difference"].tolist() == pytest.approx((there["b"] - there["a"]).tolist())
    assert there["low"].tolist() == pytest.approx((-back["high"]).tolist())
    rows = a.rows[~a.rows["metric"].str.contains("rank")].reset_index()
    keys = ["suite", "dataset", "kind", "metric", "n"]
    assert there[keys].equals(rows[keys]) and there["a"].tolist() == pytest.approx(rows["value"])
    both = compare([a, b], [b, a])  # seeds are paired by place
    assert both["difference"].tolist() == pytest.approx([0.0] * len(both))
    assert set(both["n_seeds"]) == {2} and both["high"].max() > 0
    assert both["a"].tolist() == pytest.approx(((there["a"] + there["b"]) / 2).tolist())


def rows_of(task, **items):
    items = {name: torch.tensor(values) for name, values in items.items()}
    evaluation = Evaluation("m", "small", {task: Predictions(task.kind, items, "")})
    return by_metric(evaluation, task.title)


def text_recall(text_ranks, text_units, n_images):
    """Recall@1 of texts with these ranks, whose images are all found at once."""
    images = dict(image_ranks=[0] * n_images, image_average_precisions=[1.0] * n_images)
    texts = dict(text_ranks=text_ranks, text_average_precisions=[0.5] * len(text_ranks))
    units = dict(image_units=list(range(n_images)), text_units=text_units)
    return rows_of(CAPTIONS, **images, **texts, **units).loc["text_to_image_recall@1"]


def test_texts_of_one_image_count_once_in_an_interval():
    units = [i for i in range(200) for _ in range(5)]
    row = text_recall([0 if unit < 60 else 7 for unit in units], units, 200)
    half = 1.96 * (0.3 * 0.7 / 200) ** 0.5  # of independent images; texts would halve it
    assert row["value"] == pytest.approx(0.3) and row["n"] == 1000
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.1)
    many = [i for i in range(100) for _ in range(1 if i < 50 else 9)]
    row = text_recall([0] * 500, many, 100)
    assert row[["low", "value", "high"]].tolist() == [1, 1, 1]  # not 1 give or take a tenth


def test_mean_per_class_accuracy_draws_images_within_their_classes():
    rows = rows_of(ONE, labels=[0] * 30 + [1] * 3, ranks=[0] * 30 + [2] * 3, n_classes=5)
    row = rows.loc["mean_per_class_accuracy"]
    assert (row["value"], row["low"], row["high"]) == (0.5, 0.5, 0.5)
    assert rows.loc["accuracy@1", "low"] < 30 / 33 < rows.loc["accuracy@1", "high"]
    rows = rows_of(ONE, labels=list(range(30)), ranks=[0, 1, 2] * 10, n_classes=30)
    ends = rows.loc[["accuracy@1", "mean_per_class_accuracy"], ["low", "value", "high"]].to_numpy()
    assert ends[0].tolist() == ends[1].tolist() and ends[0, 0] < 1 / 3 < ends[0, 2]


def test_the_table_has_a_line_a_set_and_a_column_a_metric():
    columns = ["dataset", "metric", "value", "low", "high"]
    given = [("b", "m@1", 0.5, 0.25, 0.75), ("b", "rank", 2, 1, 3), ("a", "m@1", 1, 1, 1)]
    rows = pd.DataFrame(given, columns=columns)
    table = engine.format_table(rows)
    assert (list(table.index), list(table.columns)) == (["b", "a"], ["m@1", "rank"])
    assert table.loc["b"].tolist() == ["50.0 [25.0, 75.0]", "2.0 [1.0, 3.0]"]
    assert table.loc["a"].tolist() == ["100.0 [100.0, 100.0]", ""]
    rows = rows.assign(difference=-0.25)
    assert engine.format_table(rows, "difference").loc["a", "m@1"] == "-25.0 [+100.0, +100.0]"
