"""The study's suites and the published scores."""

import pandas as pd
import pytest
from small_suite import ONE

from cibr.evaluate import SUITES, evaluate, suite_tasks
from cibr_book.experiments import suites
from cibr_book.experiments.suites import PUBLISHED


def test_published_and_measured_scores_are_printed_in_per_cent(
    small, clip_folder, monkeypatch, capsys, tmp_path
):
    known = pd.read_csv(PUBLISHED)
    sets = {task.dataset for suite in ("paper", "paper-extras") for task in suite_tasks(suite)}
    assert set(known["dataset"]) == sets and known["value"].between(1, 100).all()
    one = known[:1].assign(model=clip_folder, dataset="one", value=63.32)
    pd.concat([known, one]).to_csv(tmp_path / "published.csv", index=False)
    monkeypatch.setattr(suites, "PUBLISHED", tmp_path / "published.csv")
    monkeypatch.setattr(suites, "_PUBLISHED_SUITES", ("small",))
    monkeypatch.setattr("sys.argv", ["suites", clip_folder])
    suites._main()
    header, row = capsys.readouterr().out.strip().splitlines()
    names = ["dataset", "metric", "published", "measured", "low", "high", "difference"]
    cells = dict(zip(names, row.split(), strict=True))
    assert header.split() == names and row.split()[:3] == ["one", "accuracy@1", "63.32"]
    measured, low, high = (float(cells[name]) for name in names[3:6])
    rows = evaluate(suites.DualEncoder.from_pretrained(clip_folder), "small", name="m").rows
    score = rows.set_index(["dataset", "metric"])["value"][ONE.title, "accuracy@1"]
    assert measured == pytest.approx(100 * score, abs=0.01) and low <= measured <= high
    assert float(cells["difference"]) == pytest.approx(measured - 63.32, abs=0.02)


@pytest.mark.parametrize("suite", ["paper", "mini", "glyphs", "glyphs-validation"])
def test_a_mean_is_over_seven_zero_shot_sets(suite):
    assert len({t.group or t.title for t in SUITES[suite] if t.kind == "zero-shot"}) == 7
