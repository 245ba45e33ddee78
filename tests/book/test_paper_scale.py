"""The paper's setting: tables without and with rows, the cost of a step, and the sweeps on a
stand-in.
"""

import numpy as np
import pandas as pd
import pytest
from transformers import CLIPConfig

from cibr_book import paper_scale
from cibr_book.paper_scale import (
    CONTROLS,
    NOT_RUN,
    RETRIEVAL,
    SCORES,
    ZERO_SHOT,
    criterion,
    paper_table,
    step_cost,
)
from cibr_book.plan import collect, read_plan, save_row
from cibr_book.tables import read_table

NO_ROWS = pd.DataFrame({"method": [], "condition": []})


def rows_of(**means: float) -> pd.DataFrame:
    """Five seeds a method, with one mean in all scores and noise that is not shared."""
    columns = [*ZERO_SHOT.values(), *RETRIEVAL.values()]
    generator, parts = np.random.default_rng(0), []
    for name, mean in means.items():
        part = pd.DataFrame(
            mean + 0.01 * generator.standard_normal((5, len(columns))), columns=columns
        )
        settings = {
            "condition": "c",
            "beta": 0.0,
            "hyperparameters": "",
            "validation": mean,
            "seed": range(5),
        }
        parts.append(part.assign(method=name.replace("_", " "), **settings))
    return pd.concat(parts, ignore_index=True)


def test_tables_say_where_nothing_was_run():
    for columns, n in ((ZERO_SHOT, 8), (RETRIEVAL, 12)):
        table = paper_table(NO_ROWS, ["untouched", "CLIP"], columns)
        assert table.shape == (2, n) and (table == NOT_RUN).all(axis=None)
    assert (criterion(NO_ROWS, ["CIBR crossfit"]) == NOT_RUN).all(axis=None)
    rows = rows_of(CLIP=0.5).drop(columns=ZERO_SHOT["Pets"])
    table = paper_table(rows, ["untouched", "CLIP"], ZERO_SHOT)
    assert (table.loc["untouched"] == NOT_RUN).all() and table.loc["CLIP", "Pets"] == NOT_RUN
    assert table.loc["CLIP", "DTD"].startswith(f"{100 * rows[ZERO_SHOT['DTD']].mean():.1f} ± ")


def test_the_criterion_counts_significant_gains_over_each_control():
    names = {name.replace(",", "").replace(" ", "_"): name for name in CONTROLS}
    rows = rows_of(CIBR_crossfit=0.6, **dict.fromkeys(names, 0.5)).replace(
        {"method": {"CLIP weight averaging": CONTROLS[2]}}
    )
    rows.loc[rows["method"] == "noise only", SCORES[0]] += 0.5
    table = criterion(rows, ["CIBR crossfit", "CIBR vMF", "CIBR MINE"])
    assert table.loc["CIBR crossfit"].tolist() == ["5 of 5", "4 of 5", "5 of 5", "5 of 5"]
    assert table.loc["CIBR vMF", "CIBR vMF"] == "" and (table.loc["CIBR MINE"] == NOT_RUN).all()


def test_the_cost_of_a_step_is_that_of_its_matrix_products():
    def products(
        tokens, dim, layers
    ):  # of one item: four projections, scores and values, two layers of the MLP
        return 2 * layers * (12 * tokens * dim**2 + 2 * tokens**2 * dim)

    expected = products(50, 768, 12) + 2 * 49 * 768 * 32 * 32 * 3 + products(77, 512, 12)
    one, two = (step_cost(CLIPConfig(), rows) for rows in (8, 16))
    assert one["GFLOP a pair"] == two["GFLOP a pair"] == pytest.approx(4 * expected / 1e9, rel=0.01)
    weights = 2 * one["GiB"] - two["GiB"]
    assert weights == pytest.approx(16 * 151.3e6 / 2**30, rel=0.01)


@pytest.mark.slow
def test_the_sweeps_run_on_a_stand_in_trials_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("CIBR_MODELS", str(tmp_path / "models"))
    methods = ("untouched", "CIBR vMF")
    trials, runs = paper_scale.make_stand_in(tmp_path, methods, [1e-3, 1e-6])
    assert [settings["method"] for settings in read_plan(runs).runs.values()] == ["untouched"]
    assert read_plan(runs).waiting == ("MSCOCO, ViT-B/32: CIBR vMF",)
    for sweep in (trials, runs):
        plan = read_plan(sweep)
        for run, settings in plan.runs.items():
            save_row(settings, tmp_path / "runs" / f"{run}.json", plan.work)
        assert collect(plan, tmp_path / "runs") == len(plan.runs)
    tried, rows = (
        read_table(tmp_path / "experiments" / "clip-coco-trials.csv"),
        read_table(plan.results),
    )
    assert tried["zero-shot"].notna().all() and not any(name.startswith("paper/") for name in tried)
    best = tried.loc[tried[["validation", "zero-shot"]].mean(axis=1).idxmax(), "configuration"]
    assert '"learning_rate": 0.001' in best
    ran = rows[rows["method"] == "CIBR vMF"]
    assert ran["configuration"].str.contains('"learning_rate": 0.001').all() and set(
        ran["seed"]
    ) == {1, 2}
    assert not (paper_table(rows, methods, ZERO_SHOT | RETRIEVAL) == NOT_RUN).any(axis=None)
