"""Evaluation of a suite: numbers are those of the embeddings, finished sets are kept, errors name the set."""

import os

import numpy as np
import pytest
import torch
from small_suite import CLASSES, TASKS, TEMPLATES, make_small_suite, png, write_classes
from test_data_shards import write_set

from cibr import DualEncoder, inputs
from cibr.data import load_pairs
from cibr.evaluate import SUITES, Task, engine, evaluate, read_evaluation, suite_tasks
from cibr.metrics import retrieval_scores

needs_all = pytest.mark.skipif(
    not (os.environ.get("CIBR_DATA") and os.environ.get("CIBR_MODELS")), reason="CIBR_DATA or CIBR_MODELS unset"
)


@pytest.fixture
def small(tmp_path, monkeypatch):
    return make_small_suite(tmp_path, monkeypatch)


def value(rows, dataset, metric):
    return rows.set_index(["dataset", "metric"]).loc[(dataset, metric)]["value"]


def by_hand(model, name):
    """Labels and, image by image, how many wrong classes are at least as near as the right one."""
    pairs, ranks = load_pairs(name, "test"), []
    prompts = [[template.replace("{c}", c) for template in TEMPLATES] for c in pairs.classnames]
    classes = torch.stack([torch.nn.functional.normalize(model.embed_texts(p).mean(0), dim=0) for p in prompts])
    for image, label in zip(model.embed_images(list(pairs.images())), pairs.labels.tolist(), strict=True):
        similarity = [float(image @ c) for c in classes]
        ranks.append(sum(s >= similarity[label] for s in similarity) - 1)
    return pairs.labels.numpy(), np.array(ranks)


@pytest.mark.parametrize("kind", ["tiny", "frozen", "clip"])
def test_zero_shot_scores_are_those_of_the_embeddings_by_hand(build, small, kind):
    model = build(kind).train()
    found = evaluate(model, "small", name="m")
    assert model.training
    labels, ranks = by_hand(model, "one")
    per_class = [np.mean(ranks[labels == c] == 0) for c in range(6)]
    assert found.outcomes["one"].items["ranks"].tolist() == ranks.tolist()
    assert found.outcomes["one"].items["labels"].tolist() == labels.tolist()
    assert value(found.rows, "one", "accuracy@1") == pytest.approx(np.mean(ranks == 0))
    assert value(found.rows, "one", "accuracy@5") == pytest.approx(np.mean(ranks < 5))
    assert value(found.rows, "one", "mean_per_class_accuracy") == pytest.approx(np.mean(per_class))
    left = found.rows[found.rows["dataset"] == "left"]
    assert "accuracy@5" not in set(left["metric"]) and set(left["n"]) == {12}


def test_retrieval_scores_are_those_of_the_metrics(build, small):
    model = build("tiny")
    rows = evaluate(model, "small", name="m").rows
    pairs = load_pairs("captions", "test")
    images, texts = model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts())
    expected = retrieval_scores(images, texts, pairs.text_to_image())
    found = rows[rows["dataset"] == "captions"].set_index("metric")["value"].to_dict()
    assert found == pytest.approx(expected)
    assert rows.set_index("metric").loc["text_to_image_recall@1", "n"] == len(texts) > len(images)


def test_a_text_that_pictures_share_stands_once_and_each_of_its_pictures_is_right(build, small, monkeypatch):
    monkeypatch.setitem(SUITES, "shared", (Task("one", "retrieval"),))
    model, pairs = build("tiny"), load_pairs("one", "test")
    rows = evaluate(model, "shared", name="m").rows.set_index("metric")
    texts = list(dict.fromkeys(pairs.texts()))
    cosines = (model.embed_images(list(pairs.images())) @ model.embed_texts(texts).T).tolist()
    own = [texts.index(text) for text in pairs.texts()]
    ranks = [sum(c >= row[j] for c in row) - 1 for row, j in zip(cosines, own, strict=True)]
    best = [max(row[j] for row, k in zip(cosines, own, strict=True) if k == j) for j in range(len(texts))]
    wrong = [
        sum(row[j] >= best[j] for row, k in zip(cosines, own, strict=True) if k != j) for j in range(len(texts))
    ]
    for k in (1, 5):
        assert rows.loc[f"image_to_text_recall@{k}", "value"] == pytest.approx(np.mean(np.array(ranks) < k))
        assert rows.loc[f"text_to_image_recall@{k}", "value"] == pytest.approx(np.mean(np.array(wrong) < k))
    assert rows.loc["image_to_text_median_rank", "value"] == np.median(ranks) + 1
    assert (rows.loc["image_to_text_recall@1", "n"], rows.loc["text_to_image_recall@1", "n"]) == (12, 6)
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()


def test_a_group_counts_as_one_set_in_the_mean_of_the_suite(build, small):
    rows = evaluate(build("tiny"), "small", name="m").rows
    for metric in ("accuracy@1", "mean_per_class_accuracy"):
        one, left, right = (value(rows, name, metric) for name in ("one", "left", "right"))
        assert value(rows, "sides", metric) == pytest.approx((left + right) / 2)
        assert value(rows, "mean of 2", metric) == pytest.approx((one + (left + right) / 2) / 2)
    means = rows[rows["dataset"] == "mean of 2"]
    assert set(means["metric"]) == {"accuracy@1", "mean_per_class_accuracy"} and set(means["n"]) == {36}


def test_every_score_lies_in_its_interval(build, small):
    rows = evaluate(build("tiny"), "small", name="m").rows
    assert (rows["low"] <= rows["value"]).all() and (rows["value"] <= rows["high"]).all()
    assert (rows["low"] < rows["high"]).any() and not rows.isna().any().any()


def test_a_limit_draws_some_pictures_and_keeps_all_classes_to_choose_from(build, small):
    found = evaluate(build("tiny"), "small", name="m", limit=5).outcomes
    assert len(found["one"].items["labels"]) == 5 and found["one"].items["n_classes"] == 6
    assert len(set(found["left"].items["labels"].tolist())) > 1
    assert len(found["captions"].items["image_ranks"]) == 5
    assert len(found["captions"].items["text_ranks"]) == len(found["captions"].items["text_to_image"]) > 5
    everything = evaluate(build("tiny"), "small", name="m", limit=500).outcomes
    assert len(everything["one"].items["labels"]) == 12


def test_one_kind_of_a_suite_gives_the_rows_of_that_kind_and_keeps_them_apart(build, small, tmp_path):
    whole = evaluate(build("tiny"), "small", name="m", output_dir=tmp_path).rows
    for kind in ("zero-shot", "retrieval"):
        found = evaluate(build("tiny"), "small", name="m", kinds=[kind], output_dir=tmp_path).rows
        assert found.equals(whole[whole["kind"] == kind].reset_index(drop=True))
    names = ["rows-retrieval.csv", "rows-zero-shot.csv", "rows.csv"]
    assert sorted(file.name for file in (tmp_path / "small").glob("*.csv")) == names
    for wrong in ("retrieval", ["zeroshot"], []):
        with pytest.raises(ValueError, match="give a list with 'zero-shot' or 'retrieval', or both"):
            evaluate(build("tiny"), "small", name="m", kinds=wrong)
    with pytest.raises(ValueError, match="suite 'paper-extras' has no retrieval set"):
        suite_tasks("paper-extras", ["retrieval"])


def counted(monkeypatch):
    calls, real = [], engine.embed_pairs
    monkeypatch.setattr(engine, "embed_pairs", lambda m, i, b: calls.append(i.pairs.name) or real(m, i, b))
    return calls


def test_a_suite_that_failed_goes_on_at_the_set_that_failed(build, small, tmp_path, monkeypatch):
    whole = evaluate(build("tiny"), "small", name="m").rows
    templates = small / "wds_right" / "zeroshot_classification_templates.txt"
    text = templates.read_text()
    templates.write_text("a cat")
    calls = counted(monkeypatch)
    with pytest.raises(
        ValueError, match="zero-shot on right of suite 'small': .*a cat.*before it are kept in .*out"
    ):
        evaluate(build("tiny"), "small", name="m", output_dir=tmp_path / "out")
    templates.write_text(text)
    rows = evaluate(build("tiny"), "small", name="m", output_dir=tmp_path / "out").rows
    assert calls == ["one", "left", "right", "captions"]
    assert rows.equals(whole)
    assert evaluate(build("tiny"), "small", name="m", output_dir=tmp_path / "out").rows.equals(whole)
    assert calls == ["one", "left", "right", "captions"]
    assert read_evaluation(tmp_path / "out", "small", "m").rows.equals(whole)


def test_a_damaged_file_of_results_is_made_again(build, small, tmp_path, monkeypatch):
    evaluate(build("tiny"), "small", name="m", output_dir=tmp_path / "out")
    file = tmp_path / "out" / "small" / "left.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(FileNotFoundError, match="left.safetensors.* is missing or damaged"):
        read_evaluation(tmp_path / "out", "small", "m")
    calls = counted(monkeypatch)
    evaluate(build("tiny"), "small", name="m", output_dir=tmp_path / "out")
    assert calls == ["left"]


@pytest.mark.parametrize("change", ["weights", "templates", "limit", "pictures"])
def test_what_has_changed_is_evaluated_again_and_said(build, small, tmp_path, monkeypatch, change):
    model, limit = build("tiny"), 0
    evaluate(model, "small", name="m", output_dir=tmp_path)
    if change == "weights":
        model.backbone.image_head[2].weight.data.neg_()
    elif change == "templates":
        (small / "wds_left" / "zeroshot_classification_templates.txt").write_text("the {c}")
    elif change == "pictures":
        write_classes(small / "wds_left", [0, 1, 2, 3] * 3, 300, classes=CLASSES[:4])
    else:
        limit = 6
    calls = counted(monkeypatch)
    other = "another model" if change == "weights" else "other pictures or texts"
    with pytest.warns(UserWarning, match=f"holds results of {other}: .* is evaluated again"):
        rows = evaluate(model, "small", name="m", limit=limit, output_dir=tmp_path).rows
    assert calls == (["left"] if change in ("templates", "pictures") else ["one", "left", "right", "captions"])
    assert rows.equals(evaluate(model, "small", name="m", limit=limit).rows)


def test_errors_name_the_set_the_sample_and_the_suite(build, small):
    with pytest.raises(ValueError, match="there is no suite 'smal', did you mean 'small'"):
        evaluate(build("tiny"), "smal", name="m")
    write_classes(small / "wds_left", [0, 1, 9], 100)
    with pytest.raises(ValueError, match="zero-shot on left of suite 'small': sample 's2' of .*wds_left"):
        evaluate(build("tiny"), "small", name="m")
    found = evaluate(build("tiny"), "small", name="m", on_error="skip", max_skipped=1)
    assert len(found.outcomes["left"].items["labels"]) == 2
    with pytest.raises(ValueError, match="limit is 1 and batch_size 256: .* one alone has no interval"):
        evaluate(build("tiny"), "small", name="m", limit=1)


def test_a_limit_that_is_no_whole_number_is_refused(build, small, unchecked):
    with pytest.raises(ValueError, match="limit is 'ten' and batch_size 256"):
        evaluate(build("tiny"), "small", name="m", limit="ten")


def test_a_picture_that_does_not_decode_is_named_with_its_set(build, small):
    bad = [("s0.png", b"no picture"), ("s0.txt", "a red cat"), ("s1.png", png(1)), ("s1.txt", "a big dog")]
    write_set(small / "wds_captions", bad, split="test")
    with pytest.raises(
        ValueError, match="retrieval on captions of suite 'small': the image of sample 's0'.*decode"
    ):
        evaluate(build("tiny"), "small", name="m")


@pytest.mark.parametrize(
    ("broken", "error", "message"),
    [
        ("test/0.tar", ValueError, r"right of suite 'small': .*wds_right.test.0\.tar is cut short"),
        ("classnames.txt", FileNotFoundError, r"right of suite 'small': .*classnames\.txt is missing"),
        ("zeroshot_classification_templates.txt", ValueError, "right has no prompt templates.*put zeroshot_"),
    ],
)
def test_a_part_of_a_set_that_is_cut_short_or_missing_is_named_with_the_set(build, small, broken, error, message):
    file = small / "wds_right" / broken
    if file.suffix == ".tar":
        file.write_bytes(file.read_bytes()[:3000])
    else:
        file.unlink()
    with pytest.raises(error, match=message):
        evaluate(build("tiny"), "small", name="m")


def test_a_missing_set_or_folder_is_said_before_anything_is_computed(build, small, monkeypatch):
    monkeypatch.setitem(SUITES, "small", (*TASKS, Task("absent")))
    calls = counted(monkeypatch)
    with pytest.raises(ValueError, match="there is no data set 'absent'"):
        evaluate(build("tiny"), "small", name="m")
    monkeypatch.setitem(SUITES, "small", TASKS)
    with pytest.raises(ValueError, match="cannot make .*classnames.txt.*; choose another output_dir"):
        evaluate(build("tiny"), "small", name="m", output_dir=small / "wds_one" / "classnames.txt")
    assert not calls


@pytest.mark.parametrize("suite", ["glyphs", "glyphs-validation"])
def test_the_glyph_suites_run_without_any_download(build, monkeypatch, suite):
    monkeypatch.delenv("CIBR_DATA", raising=False)
    rows = evaluate(build("tiny"), suite, name="m", limit=30).rows
    titles = [task.title for task in suite_tasks(suite)]
    assert list(dict.fromkeys(rows["dataset"])) == [*titles, "mean of 7"]
    assert rows["value"][~rows["metric"].str.contains("rank")].between(0, 1).all()


def test_no_suite_holds_a_set_twice_and_paper_and_mini_have_seven_zero_shot_sets():
    for tasks in SUITES.values():
        assert len({task.file for task in tasks}) == len(tasks)
    for suite in ("paper", "mini", "glyphs", "glyphs-validation"):
        assert len({t.group or t.title for t in SUITES[suite] if t.kind == "zero-shot"}) == 7


@pytest.mark.data
@pytest.mark.models
@needs_all
def test_the_mini_suite_runs_on_photos(monkeypatch, tmp_path):
    monkeypatch.setattr(inputs, "data_folder", lambda: tmp_path)
    torch.manual_seed(0)
    rows = evaluate(DualEncoder.frozen(dim=64, image_size=64), "mini", name="m", limit=8).rows
    assert {"pacs", "mean of 7", "flickr8k", "pacs-sketch"} <= set(rows["dataset"])
