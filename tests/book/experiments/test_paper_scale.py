"""The paper's setting: tables without and with rows, and the stand-in."""

import numpy as np
import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from paper_stand_in import make_stand_in
from scipy import stats

from cibr_book.experiments.paper_scale import (
    RETRIEVAL,
    ZERO_SHOT,
    criterion,
    result_tables,
    score_table,
)
from cibr_book.experiments.plan import collect, read_plan, save_row
from cibr_book.experiments.tables import read_table

NO_ROWS = pd.DataFrame({"method": [], "condition": []})
COLUMNS = [*ZERO_SHOT.values(), *RETRIEVAL.values()]
CONTROLS = ["CLIP", "noise only", "CLIP, weight averaging", "CyCLIP", "CLIP-Refine", "CIBR vMF"]


def rows_of(means: dict[str, float]) -> pd.DataFrame:
    """Five seeds a method, with one mean in all scores and noise that is not shared."""
    generator = np.random.default_rng(0)
    settings = {"condition": "c", "beta": 0.0, "hyperparameters": "", "seed": range(5)}
    parts = []
    for method, mean in means.items():
        noise = 0.01 * generator.standard_normal((5, len(COLUMNS)))
        part = pd.DataFrame(mean + noise, columns=COLUMNS)
        parts.append(part.assign(method=method, validation=mean, **settings))
    return pd.concat(parts, ignore_index=True)


def test_tables_say_where_nothing_was_run():
    for columns, n in ((ZERO_SHOT, 8), (RETRIEVAL, 12)):
        table = score_table(NO_ROWS, ["untouched", "CLIP"], columns)
        assert table.shape == (2, n) and (table == "not run").all(axis=None)
    assert (criterion(NO_ROWS, ["CIBR crossfit"]) == "not run").all(axis=None)
    rows = rows_of({"CLIP": 0.5}).drop(columns=ZERO_SHOT["Pets"])
    table = score_table(rows, ["untouched", "CLIP"], ZERO_SHOT)
    assert (table.loc["untouched"] == "not run").all() and table.loc["CLIP", "Pets"] == "not run"
    scores = 100 * rows[ZERO_SHOT["DTD"]]
    half = stats.sem(scores) * stats.t.ppf(0.975, 4)
    assert table.loc["CLIP", "DTD"] == f"{scores.mean():.1f} ± {half:.1f}"


def test_the_criterion_counts_significant_gains_over_each_control():
    rows = rows_of({"CIBR crossfit": 0.6} | dict.fromkeys(CONTROLS, 0.5) | {"untouched": 0.4})
    rows.loc[rows["method"] == "noise only", ZERO_SHOT["mean"]] += 0.5
    rows = rows.assign(**{name: 0.0 for name in COLUMNS if not name.endswith("@1")})
    table = criterion(rows, ["CIBR crossfit", "CIBR vMF", "CIBR MINE"])
    assert list(table) == CONTROLS
    assert table.loc["CIBR crossfit"].tolist() == ["5 of 5", "4 of 5", *4 * ["5 of 5"]]
    assert table.loc["CIBR vMF", "CLIP"] == "0 of 5"
    assert table.loc["CIBR vMF", "CIBR vMF"] == "" and (table.loc["CIBR MINE"] == "not run").all()


def test_the_page_shows_the_conditions_that_have_rows():
    rows = rows_of({"CIBR crossfit, sampled": 0.6, "CLIP": 0.5})
    rows = rows.assign(condition="Flickr30K, ViT-B/32")
    accuracies, recalls, successes = result_tables(rows).values()
    assert accuracies.index.unique(0).tolist() == ["Flickr30K, ViT-B/32"]
    few = accuracies.loc["Flickr30K, ViT-B/32", "mean"]
    assert few["CLIP"].startswith("50.") and few["CyCLIP"] == "not run"
    assert recalls.shape == (11, 12)
    assert successes.loc[("Flickr30K, ViT-B/32", "CIBR crossfit, sampled"), "CLIP"] == "5 of 5"


@pytest.fixture
def fresh_accelerator():
    """A process has one precision for good; this test has another than the rest."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
def test_the_sweeps_run_on_a_stand_in_trials_first(tmp_path, monkeypatch, fresh_accelerator):
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CIBR_MODELS", str(tmp_path / "models"))
    methods = ("untouched", "CIBR vMF")
    trials, runs = make_stand_in(tmp_path, methods, [1e-3, 1e-6])
    assert [settings["method"] for settings in read_plan(runs).runs.values()] == ["untouched"]
    assert read_plan(runs).waiting == ("MSCOCO, ViT-B/32: CIBR vMF",)
    for sweep in (trials, runs):
        plan = read_plan(sweep)
        for run, settings in plan.runs.items():
            save_row(settings, tmp_path / "runs" / f"{run}.json", plan.work)
        assert collect(plan, tmp_path / "runs") == len(plan.runs)
    tried, rows = (read_table(sweep.with_suffix(".csv")) for sweep in (trials, runs))
    assert tried["zero-shot"].notna().all() and not any(name.startswith("paper/") for name in tried)
    ran = rows[rows["method"] == "CIBR vMF"]
    assert ran["seed"].tolist() == [1, 2]
    scores = tried[["validation", "zero-shot"]].mean(axis=1)
    for settings in (tried.loc[scores.idxmax(), "configuration"], *ran["configuration"]):
        assert '"learning_rate": 0.001' in settings
    assert not (score_table(rows, methods, ZERO_SHOT | RETRIEVAL) == "not run").any(axis=None)
