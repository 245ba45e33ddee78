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
CONTROLS = ["untouched", "CLIP", "noise only", "CIBR vMF"]


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


def test_the_tables_have_scores_with_intervals_and_significant_gains_over_each_control():
    rows = rows_of({"CIBR crossfit": 0.6} | dict.fromkeys(CONTROLS, 0.5) | {"untouched": 0.4})
    rows["validation"] = rows["validation"].mask(rows["method"] == "untouched")
    rows.loc[rows["method"] == "noise only", ZERO_SHOT["mean of 7"]] += 0.5
    rows.loc[:, [name for name in COLUMNS if "recall@10" in name]] = 0.0
    rows = rows[(rows["method"] != "untouched") | (rows["seed"] == 0)]
    accuracies, recalls, nats, gains = result_tables(rows).values()
    assert accuracies.shape == (5, 8) and recalls.shape == (5, 12)
    bound = rows.loc[rows["method"] == "CLIP", RESIDUAL["bound"]].mean()
    assert nats.loc[("c", "CLIP"), "bound"].startswith(f"{bound:.1f} ± ")
    scores = 100 * rows.loc[rows["method"] == "CLIP", ZERO_SHOT[SET]]
    half = stats.sem(scores) * stats.t.ppf(0.975, 4)
    assert accuracies.loc[("c", "CLIP"), SET] == f"{scores.mean():.1f} ± {half:.1f}"
    untouched = 100 * rows.loc[rows["method"] == "untouched", ZERO_SHOT[SET]].item()
    assert accuracies.loc[("c", "untouched"), SET] == f"{untouched:.1f}"
    assert list(gains) == CONTROLS and list(gains.index) == [("c", "CIBR crossfit")]
    assert gains.iloc[0].tolist() == ["5 of 5", "5 of 5", "4 of 5", "5 of 5"]


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
