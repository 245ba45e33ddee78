"""The study's suites and the published scores."""

import pytest
from small_suite import LEFT, ONE

from cibr.evaluate import SUITES, evaluate, suite_tasks
from cibr_book.experiments import suites
from cibr_book.experiments.suites import against_published, published

MODEL = "openai/clip-vit-base-patch32"


def test_published_scores_are_compared_in_per_cent(build, small):
    known = published(MODEL)
    assert known.set_index(["dataset", "metric"])["value"]["imagenet1k", "accuracy@1"] == 63.32
    sets = {task.dataset for suite in ("paper", "paper-extras") for task in suite_tasks(suite)}
    assert set(known["dataset"]) == sets
    rows = evaluate(build("tiny"), "small", name="m").rows
    table = against_published(rows, known[:2].assign(dataset=["one", "left"]))
    scores = rows.set_index(["dataset", "metric"])["value"]
    measured = [100 * scores[task.title, "accuracy@1"] for task in (ONE, LEFT)]
    assert table["measured"].tolist() == measured
    assert table["difference"].tolist() == pytest.approx([measured[0] - 63.32, measured[1] - 89.83])
    assert (table["low"] <= table["measured"]).all() and (table["high"] > 1).all()


def test_no_suite_holds_a_set_twice_and_paper_mini_and_glyphs_have_seven_zero_shot_sets():
    for suite in SUITES:
        assert len({t.file for t in suite_tasks(suite)}) == len(suite_tasks(suite))
    for suite in ("paper", "mini", "glyphs", "glyphs-validation"):
        assert len({t.group or t.title for t in SUITES[suite] if t.kind == "zero-shot"}) == 7
    for suite, split in (("glyphs", "test"), ("glyphs-validation", "validation")):
        assert {t.split for t in SUITES[suite]} == {split, f"{split}_characters"}
    for suite in ("paper", "paper-extras", "paper-validation", "mini", "confirmation"):
        assert {t.split for t in SUITES[suite]} == {"test"}


def test_the_command_prints_published_and_measured_scores(small, clip_folder, monkeypatch, capsys):
    known = published(MODEL)[:1].assign(dataset="one")
    monkeypatch.setattr(suites, "_PUBLISHED_SUITES", ("small",))
    monkeypatch.setattr(suites, "published", lambda model: known)
    monkeypatch.setattr("sys.argv", ["suites", clip_folder])
    suites.main()
    header, row = capsys.readouterr().out.strip().splitlines()
    assert header.split()[:4] == ["dataset", "metric", "published", "measured"]
    assert row.split()[:3] == ["one", "accuracy@1", "63.32"]
