"""The paper's setting: its tables, and the sweeps on a stand-in."""

import numpy as np
import pandas as pd
import pytest
from accelerate.state import AcceleratorState
from paper_stand_in import make_stand_in
from scipy import stats

from cibr_book.experiments.paper_scale import RESIDUAL, RETRIEVAL, ZERO_SHOT, result_tables
from cibr_book.experiments.plan import collect, read_plan, save_row
from cibr_book.experiments.tables import read_table

COLUMNS = [*ZERO_SHOT.values(), *RETRIEVAL.values(), *RESIDUAL.values()]
SET = next(iter(ZERO_SHOT))


def test_the_tables_have_scores_with_intervals_over_seeds():
    noise = np.random.default_rng(0).standard_normal((6, len(COLUMNS)))
    rows = pd.DataFrame(0.5 + 0.01 * noise, columns=COLUMNS)
    rows = rows.assign(condition="c", method=["CLIP"] * 5 + ["untouched"])
    accuracies, recalls, nats = result_tables(rows).values()
    assert accuracies.shape == (2, 8) and recalls.shape == (2, 12)
    assert nats.loc[("c", "CLIP"), "bound"].startswith(
        f"{rows[RESIDUAL['bound']][:5].mean():.1f} ±"
    )
    scores = 100 * rows[ZERO_SHOT[SET]]
    half = stats.sem(scores[:5]) * stats.t.ppf(0.975, 4)
    assert accuracies.loc[("c", "CLIP"), SET] == f"{scores[:5].mean():.1f} ± {half:.1f}"
    assert accuracies.loc[("c", "untouched"), SET] == f"{scores[5]:.1f}"


@pytest.fixture
def fresh_accelerator():
    """A process has one precision for good; this test has another than the rest."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the model was trained on")  # the stand-in repeats images
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
    assert rows[COLUMNS].notna().all(axis=None)
