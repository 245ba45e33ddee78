"""What a YAML file expands to, and that the committed tables are those of the committed plans."""

import hashlib
import json
from pathlib import Path

import pandas as pd
import pytest

from cibr_book.experiments.confirmation import FORMS, SEEDS, best_forms
from cibr_book.experiments.plan import (
    Plan,
    collect,
    committed,
    drawn,
    grid,
    read_plan,
    run_id,
    save_row,
)
from cibr_book.experiments.tables import RESULTS, read_table

FILES = sorted((Path(__file__).resolve().parents[2] / "experiments").glob("*.yaml"))
TABLES = ["confirmation.csv", "confirmation_trials.csv"]
SMALL = """
results: rows.csv
fixed: {dataset: glyphs, suites: [[glyphs]]}
conditions:
  few:
    fixed: {corruption: {fraction: 0.1}}
    methods:
      - {method: CLIP, beta: 0, seed: [1, 2]}
      - {method: CIBR, beta: [0.1, 0.2], dataset: flickr8k, seed: 1}
"""
FEW = {"corruption": {"fraction": 0.1}, "condition": "few"}

WORK = "cibr_book.experiments.run.train_and_measure"


def all_planned(table: str) -> dict[str, dict]:
    plans = [plan for plan in map(read_plan, FILES) if plan.results == RESULTS / table]
    runs = {run: settings for plan in plans for run, settings in plan.runs.items()}
    assert len(runs) == sum(len(plan.runs) for plan in plans), "two sweeps plan the same run"
    return runs


def write_rows(plan: Plan, folder: Path, runs: dict[str, dict]) -> None:
    for run, columns in runs.items():
        row = {"run": run, "configuration": json.dumps(plan.runs[run]), "commit": None}
        (folder / f"{run}.json").write_text(json.dumps(row | columns))
    assert collect(plan, folder) == len(runs)


def test_a_plan_is_a_grid_of_lists_over_fixed_settings(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    plan = read_plan(tmp_path / "small.yaml")
    clip = FEW | {"suites": ["glyphs"], "dataset": "glyphs", "method": "CLIP", "beta": 0}
    cibr = FEW | {"suites": ["glyphs"], "dataset": "flickr8k", "method": "CIBR", "seed": 1}
    expected = [clip | {"seed": 1}, clip | {"seed": 2}, cibr | {"beta": 0.1}, cibr | {"beta": 0.2}]
    assert list(plan.runs.values()) == expected and plan.results == tmp_path / "rows.csv"
    assert read_plan(tmp_path / "small.yaml", "again.csv").results == Path("again.csv").resolve()


def test_methods_of_a_condition_are_drawn_at_the_same_values_of_the_axes_they_share(tmp_path):
    axes = {"rate": [0.1, 0.2, 0.3, 0.4], "dropout": [0.0, 0.5], "seed": 0}
    points = drawn(axes, 6, "few")
    assert len(points) == 6 and all(point in grid(axes) for point in points)
    assert all(point not in points[:i] for i, point in enumerate(points))
    assert len({point["rate"] for point in points}) > 2
    own = drawn(axes | {"weight": [1, 2, 3]}, 6, "few")
    assert [{name: point[name] for name in axes} for point in own[:3]] == points[:3]
    assert points != drawn(axes, 6, "many")
    assert sorted(map(str, drawn(axes, 8, "few"))) == sorted(map(str, grid(axes)))
    with pytest.raises(ValueError, match="few: draw is 9, but the grid has 8 points"):
        drawn(axes, 9, "few")
    few = SMALL.replace("beta: [0.1, 0.2]", "beta: [0.1, 0.2, 0.3], draw: 2")
    (tmp_path / "small.yaml").write_text(few)
    assert len(read_plan(tmp_path / "small.yaml").runs) == 4


def test_the_id_of_a_run_depends_on_what_decides_its_numbers_alone():
    settings = {"beta": 1.0, "corruption": {"fraction": 0.1}, "seed": 0}
    renamed = {"method": "x", "condition": "y", "seed": 0.0, "corruption": {"fraction": 0.1}}
    assert run_id(settings) == run_id(renamed | {"beta": 1}) == "78ab39a610b0"
    assert run_id(settings) != run_id(settings | {"seed": 1})


def test_every_plan_opens_with_its_command():
    for file in FILES:
        assert f"--config sweep=experiments/{file.name}" in file.read_text().split("results:")[0]


@pytest.mark.parametrize("table", TABLES)
def test_every_planned_run_has_a_row_and_every_row_a_plan(table):
    planned, rows = all_planned(table), committed(RESULTS / table).set_index("run")
    assert rows.index.is_unique and set(planned) == set(rows.index)
    for run, settings in planned.items():
        row = rows.loc[run]
        assert run_id(json.loads(row["configuration"])) == run and row["commit"]
        names = ["method", "condition", "beta", "seed"]
        assert [str(settings[name]) for name in names] == row[names].tolist()


def test_rows_are_collected_once_as_text_and_only_those_of_the_plan(tmp_path):
    plan = Plan(tmp_path / "rows.csv", "", {run_id(s): s for s in grid({"seed": [1, 2]})})
    (tmp_path / "000000000000.json").write_text("{}")
    values = [{"value": 1 / 3, "beta": 0}, {"value": 0.5, "beta": 0.1}]
    write_rows(plan, tmp_path, dict(zip(plan.runs, values, strict=True)))
    assert collect(plan, tmp_path) == 0
    rows = committed(plan.results)
    assert rows["run"].tolist() == list(plan.runs) and rows["commit"].tolist() == ["", ""]
    assert rows["value"].tolist() == [str(1 / 3), "0.5"] and rows["beta"].tolist() == ["0", "0.1"]


def test_methods_start_from_their_best_trial_once_all_trials_have_rows(tmp_path):
    trials = SMALL.replace("rows.csv", "trials.csv")
    trials = trials.replace("seed: [1, 2]", "dropout: [0.1, 0.2], seed: 7")
    (tmp_path / "trials.yaml").write_text(trials)
    final = "results: rows.csv\ntrials: trials.yaml\nfixed: {dataset: flickr8k}\nconditions:"
    methods = "{method: CLIP}, {method: CIBR, dropout: 0.5}, {method: untried}"
    methods = f"[{methods}, {{method: curve, like: CLIP, beta: [0.1, 0.2]}}]"
    (tmp_path / "final.yaml").write_text(f"{final} {{few: {{methods: {methods}}}}}")
    tried = read_plan(tmp_path / "trials.yaml")
    clip = [run for run, settings in tried.runs.items() if settings["method"] == "CLIP"]
    for i, run in enumerate(clip):
        waiting = read_plan(tmp_path / "final.yaml").waiting
        assert waiting == ("few: CLIP", "few: CIBR", "few: curve")
        write_rows(tried, tmp_path, {run: {"validation_image_to_text_recall@1": 0.2 + 0.1 * i}})
    plan = read_plan(tmp_path / "final.yaml")
    assert plan.waiting == ("few: CIBR",)
    fixed = {"dataset": "flickr8k", "condition": "few"}
    best = FEW | {"method": "CLIP", "beta": 0, "dropout": 0.2}
    curve = [best | fixed | {"method": "curve", "beta": beta} for beta in (0.1, 0.2)]
    assert [*plan.runs.values()] == [best | fixed, fixed | {"method": "untried"}, *curve]
    diverged = {run: {"error": "diverged"} for run in tried.runs if run not in clip}
    write_rows(tried, tmp_path, diverged)
    with pytest.raises(ValueError, match="trials.csv: every trial of 'CIBR' in 'few' diverged"):
        read_plan(tmp_path / "final.yaml")


def test_a_row_has_the_names_the_settings_and_the_metrics_or_the_error(tmp_path, monkeypatch):
    def work(settings, folder):
        if settings["beta"]:
            raise FloatingPointError("step 3 was not taken: it is not finite")
        return {"metric": 1 / 3, "undefined": float("nan"), "n": len(settings)}

    monkeypatch.setattr("cibr_book.experiments.run.train_and_measure", work)
    settings = {"method": "CLIP", "condition": "few", "beta": 0, "seed": 1}
    rows = [
        save_row(
            settings | {"beta": beta},
            tmp_path / "x.json",
            "cibr_book.experiments.run.train_and_measure",
        )
        for beta in (0, 1)
    ]
    assert rows[1] == json.loads((tmp_path / "x.json").read_text())
    assert rows[0].items() >= (settings | {"metric": 0.333333, "n": 2}).items()
    assert rows[0]["configuration"] == '{"beta": 0, "seed": 1}' and "undefined" not in rows[0]
    assert rows[1]["error"].startswith("step 3") and "metric" not in rows[1]


def test_the_confirmation_runs_what_its_plan_says():
    folder = FILES[0].parent
    runs = read_plan(folder / "confirmation.yaml").runs
    stated = (folder / "confirmation.md").read_text()
    ids = hashlib.sha256("\n".join(sorted(runs)).encode()).hexdigest()
    assert f"{len(runs)} runs" in stated and f"`{ids}`" in stated
    planned = pd.DataFrame(runs.values())
    of_forms = planned[planned["method"].isin(FORMS)].groupby("condition")["method"].unique()
    assert of_forms.explode().to_dict() == best_forms(read_table("confirmation_trials.csv"))
    seeds = planned[~planned["method"].str.endswith("over beta")].groupby(["condition", "method"])
    assert all(own == SEEDS for own in seeds["seed"].agg(sorted))
