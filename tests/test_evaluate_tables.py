"""Comparisons of models on the same pictures, tables to read, the command, and published results."""

import sys

import pytest
import torch
from small_suite import make_small_suite

from cibr.evaluate import Evaluation, Outcome, compare, evaluate, format_table, short_names, suite_tasks
from cibr.evaluate import __main__ as command_line
from cibr.evaluate.published import against_published, published


@pytest.fixture
def small(tmp_path, monkeypatch):
    return make_small_suite(tmp_path, monkeypatch)


def test_a_model_differs_from_itself_by_nothing_and_a_comparison_is_antisymmetric(build, small):
    a, b = (evaluate(build(kind), "small", name=kind) for kind in ("tiny", "clip"))
    same, there, back = compare(a, a), compare(a, b), compare(b, a)
    assert (same[["difference", "low", "high"]].to_numpy() == 0).all()
    assert there["difference"].tolist() == pytest.approx((-back["difference"]).tolist())
    assert there["difference"].tolist() == pytest.approx((there["b"] - there["a"]).tolist())
    assert there["low"].tolist() == pytest.approx((-back["high"]).tolist())
    rows = a.rows.set_index(["dataset", "metric"])["value"]
    assert there["a"].tolist() == pytest.approx(
        [rows[key] for key in zip(there["dataset"], there["metric"], strict=True)]
    )


def test_seeds_are_averaged_and_paired_by_place(build, small):
    a, b = (evaluate(build(kind), "small", name=kind) for kind in ("tiny", "clip"))
    both = compare([a, b], [b, a])
    assert both["difference"].tolist() == pytest.approx([0.0] * len(both))
    assert set(both["n_seeds"]) == {2} and both["high"].max() > 0
    assert compare([a, a], [b, b])["difference"].tolist() == pytest.approx(compare(a, b)["difference"].tolist())


def test_evaluations_that_do_not_compare_are_refused(build, small):
    model = build("tiny")
    a, limited = evaluate(model, "small", name="a"), evaluate(model, "small", name="b", limit=5)
    with pytest.raises(
        ValueError, match="b and a were not shown the same pictures and texts of (one|left|right|cap)"
    ):
        compare(a, limited)
    with pytest.raises(ValueError, match="2 and 1 evaluations of small do not compare"):
        compare([a, a], a)


def test_the_command_prints_both_models_and_their_difference(
    small, clip_folder, tmp_path, monkeypatch, capsys, build
):
    other = str(build("tiny").save_pretrained(tmp_path / "tiny"))
    arguments = ["cibr.evaluate", clip_folder, "--suite", "small", "--compare-with", other, "--limit", "9"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(tmp_path / "out"), "--device", "cpu"])
    command_line.main()
    printed = capsys.readouterr().out
    assert printed.count("mean of 2") == 3 and f"{other} minus {clip_folder}" in printed
    assert len(list((tmp_path / "out").glob("*/small/rows.csv"))) == 2


def test_the_command_recomputes_published_scores(small, clip_folder, monkeypatch, capsys):
    known = published("openai/clip-vit-base-patch32")[:1].assign(dataset="one")
    monkeypatch.setattr(command_line, "PUBLISHED_SUITES", ("small",))
    monkeypatch.setattr(command_line, "published", lambda model: known)
    monkeypatch.setattr(sys, "argv", ["cibr.evaluate", "--published", clip_folder, "--device", "cpu"])
    command_line.main()
    header, row = capsys.readouterr().out.strip().splitlines()
    assert header.split() == ["dataset", "metric", "published", "measured", "low", "high", "difference"]
    assert row.split()[:3] == ["one", "accuracy@1", "63.32"]


def test_the_command_says_what_is_wrong(small, clip_folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cibr.evaluate", clip_folder, "--suite", "small", "--limit", "-3"])
    with pytest.raises(SystemExit, match="2"):
        command_line.main()
    assert "limit is -3" in capsys.readouterr().err


def rows_of(kind, **items):
    task = {"zero-shot": "one", "retrieval": "captions"}[kind]
    items = {name: torch.tensor(values) for name, values in items.items()}
    return Evaluation("m", "small", {task: Outcome(kind, items, "")}).rows.set_index("metric")


def test_texts_of_one_picture_count_once_in_an_interval(small):
    n_images, n_texts, share = 200, 5, 0.3
    hits = [i < share * n_images for i in range(n_images) for _ in range(n_texts)]
    ranks = [0 if hit else 7 for hit in hits]
    row = rows_of(
        "retrieval",
        image_ranks=[0] * n_images,
        text_ranks=ranks,
        text_to_image=[i for i in range(n_images) for _ in range(n_texts)],
        image_average_precisions=[1.0] * n_images,
        text_average_precisions=[1 / (1 + rank) for rank in ranks],
    ).loc["text_to_image_recall@1"]
    half = 1.96 * (share * (1 - share) / n_images) ** 0.5  # of independent pictures; texts would halve it
    assert row["value"] == pytest.approx(share) and row["n"] == 1000
    assert row["high"] - row["low"] == pytest.approx(2 * half, rel=0.1)


def test_pictures_with_many_texts_do_not_widen_the_interval_by_their_number(small):
    texts, everything = [1] * 50 + [9] * 50, [0] * 500
    row = rows_of(
        "retrieval",
        image_ranks=[0] * 100,
        text_ranks=everything,
        text_to_image=[i for i, n in enumerate(texts) for _ in range(n)],
        image_average_precisions=[1.0] * 100,
        text_average_precisions=[1.0] * 500,
    ).loc["text_to_image_recall@1"]
    assert (row["low"], row["value"], row["high"]) == pytest.approx((1, 1, 1))  # not 1 give or take a tenth


def test_mean_per_class_accuracy_draws_pictures_within_their_classes(small):
    rows = rows_of("zero-shot", labels=[0] * 30 + [1] * 3, ranks=[0] * 30 + [2] * 3, n_classes=5)
    row = rows.loc["mean_per_class_accuracy"]
    assert (row["value"], row["low"], row["high"]) == (0.5, 0.5, 0.5)
    assert rows.loc["accuracy@1", "low"] < 30 / 33 < rows.loc["accuracy@1", "high"]
    assert rows.loc["accuracy@5", "low"] == 1


def test_names_are_cut_to_what_tells_models_apart():
    assert short_names("clip-tiny", "a/cibr-tiny/") == ["clip-tiny", "cibr-tiny"]
    assert short_names("x/a/seed-0", "x/b/seed-0") == ["a/seed-0", "b/seed-0"]
    assert short_names("a", "a") == ["a", "a"] and short_names("openai/clip") == ["clip"]
    assert short_names("a", "/a") == ["a", "/a"]


def test_the_table_has_a_line_a_set_and_a_column_a_metric(build, small):
    rows = evaluate(build("tiny"), "small", name="m").rows
    table = format_table(rows[rows["kind"] == "zero-shot"])
    assert list(table.index) == ["one", "left", "right", "sides", "mean of 2"]
    row = rows.set_index(["dataset", "metric"]).loc[("one", "accuracy@1")]
    assert table.loc["one", "accuracy@1"] == "{:.1f} [{:.1f}, {:.1f}]".format(
        *(100 * row[name] for name in ("value", "low", "high"))
    )
    assert table.loc["left", "accuracy@5"] == ""


def test_published_scores_are_compared_in_per_cent(build, small, monkeypatch):
    known = published("openai/clip-vit-base-patch32")
    assert known.set_index(["dataset", "metric"])["value"]["imagenet1k", "accuracy@1"] == 63.32
    sets = {task.dataset for suite in ("paper", "paper-extras") for task in suite_tasks(suite)}
    assert set(known["dataset"]) == sets
    known = known[:2].assign(dataset=["one", "left"])
    rows = evaluate(build("tiny"), "small", name="m").rows
    values = rows.set_index(["dataset", "metric"])["value"]
    found = against_published(rows, known)
    assert found["measured"].tolist() == [100 * values[name, "accuracy@1"] for name in ("one", "left")]
    assert found["difference"].tolist() == pytest.approx((found["measured"] - [63.32, 89.83]).tolist())
    with pytest.raises(ValueError, match="published.csv has no results of 'mine'"):
        published("mine")
