"""Plans: what a YAML file expands to, and that the committed tables are what the committed plans
describe.
"""

import json
from pathlib import Path

import pytest

from cibr_book.plan import Plan, collect, committed, grid, read_plan, run_id, save_row
from cibr_book.tables import RESULTS, control_of, read_table

FILES = sorted((Path(__file__).resolve().parents[2] / "experiments").glob("*.yaml"))
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


def all_planned(table: str) -> dict[str, dict]:
    plans = [read_plan(file) for file in FILES]
    runs = [run for plan in plans if plan.results == RESULTS / table for run in plan.runs.items()]
    assert len(dict(runs)) == len(runs), "two sweeps plan the same run"
    return dict(runs)


def test_a_plan_is_a_grid_of_lists_over_fixed_settings(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    plan = read_plan(tmp_path / "small.yaml")
    assert plan.results == tmp_path / "rows.csv" and len(plan.runs) == 4
    common = {"suites": ["glyphs"], "corruption": {"fraction": 0.1}, "condition": "few"}
    clip = {"dataset": "glyphs", "method": "CLIP", "beta": 0}
    cibr = {"dataset": "flickr8k", "method": "CIBR", "seed": 1}
    expected = [common | clip | {"seed": 1}, common | clip | {"seed": 2}]
    expected += [common | cibr | {"beta": 0.1}, common | cibr | {"beta": 0.2}]
    assert list(plan.runs.values()) == expected


def test_the_id_of_a_run_depends_on_what_decides_its_numbers_alone():
    settings = {"beta": 1.0, "corruption": {"fraction": 0.1}, "seed": 0}
    renamed = {
        "method": "x",
        "condition": "y",
        "seed": 0.0,
        "corruption": {"fraction": 0.1},
        "beta": 1,
    }
    assert run_id(settings) == run_id(renamed) == "78ab39a610b0"
    assert run_id(settings) != run_id(settings | {"seed": 1})


def test_ten_plans_at_most_each_with_its_command():
    assert len(FILES) <= 10 and len(list(RESULTS.glob("*.csv"))) <= 12
    for file in FILES:
        assert f"--config sweep=experiments/{file.name}" in file.read_text().split("results:")[0]


@pytest.mark.parametrize(
    "table", ["ablation.csv", "ablation_trials.csv", "presets.csv", "adapters.csv"]
)
def test_every_planned_run_has_a_row_and_every_row_a_plan(table):
    planned, rows = all_planned(table), committed(RESULTS / table).set_index("run")
    assert rows.index.is_unique and set(planned) == set(rows.index)
    for run, settings in planned.items():
        row = rows.loc[run]
        assert run_id(json.loads(row["configuration"])) == run and row["commit"]
        names = [str(settings[name]) for name in ("method", "condition", "beta", "seed")]
        assert names == [row[name] for name in ("method", "condition", "beta", "seed")]


def test_the_name_of_a_method_says_whether_it_contrasts_samples():
    for table in ("ablation.csv", "ablation_trials.csv"):
        for settings in all_planned(table).values():
            always = settings["method"] in ("noise only", "CIBR MINE", "consistency")
            assert settings.get("sample", False) == (
                always or settings["method"].endswith("sampled")
            )


@pytest.mark.parametrize("condition", sorted(set(read_table("ablation_trials.csv")["condition"])))
def test_every_method_had_as_many_trials_and_ran_as_its_best_one(condition):
    trials, rows = read_table("ablation_trials.csv"), read_table()
    trials, rows = trials[trials["condition"] == condition], rows[rows["condition"] == condition]
    counts = trials.groupby("method").size()
    # A closed form takes seconds; its ridges, of which it had more, are those of all that start at
    # it. More trials of CLIP make the others' control stronger.
    others = counts.drop(["closed-form CCA", "CLIP"], errors="ignore")
    assert others.nunique() <= 1 and counts["CLIP"] == max([counts["CLIP"], *others])
    for method in counts.index:
        best = trials[trials["method"] == method].nlargest(1, "validation").iloc[0]
        settings = json.loads(best["configuration"])
        ran = [json.loads(text) for text in rows[rows["method"] == method]["configuration"]]
        names = (
            "temperature",
            "dropout",
            "beta",
            "kappa_e",
            "sample",
            "text_weight",
            "corruption",
            "unpaired",
        )
        names += (
            "group_size",
            "group_share",
            "learning_rate",
            "epochs",
            "feature_noise",
            "ema_decay",
        )
        names += ("cca_ridge_image", "cca_ridge_text")
        names = (
            names[1:] if method == "closed-form CCA" else names
        )  # no step is taken, at any temperature
        assert any(all(s.get(n) == settings.get(n) for n in names) for s in ran), (
            condition,
            method,
            settings,
        )
    assert control_of(rows)["hyperparameters"].nunique() == 1


def test_rows_are_collected_once_and_only_those_of_the_plan(tmp_path):
    settings = grid({"seed": [1, 2]})
    plan = Plan(tmp_path / "rows.csv", "", {run_id(s): s for s in settings})
    for i, name in enumerate([*plan.runs, "000000000000"]):
        (tmp_path / f"{name}.json").write_text(
            json.dumps({"run": name, "commit": None, "value": i / 3})
        )
    assert [collect(plan, tmp_path), collect(plan, tmp_path)] == [2, 0]
    rows = committed(plan.results)
    assert rows["run"].tolist() == list(plan.runs) and rows["value"].astype(float).tolist() == [
        0,
        1 / 3,
    ]
    assert rows["commit"].tolist() == ["", ""]


def test_methods_start_from_their_best_trial_once_all_trials_have_rows(tmp_path):
    trials = SMALL.replace("rows.csv", "trials.csv").replace(
        "seed: [1, 2]", "temperature: [0.1, 0.2], seed: 0"
    )
    (tmp_path / "trials.yaml").write_text(trials)
    final = "results: rows.csv\ntrials: trials.yaml\nfixed: {suites: [[mini]], seed: [1, 2]}\n"
    methods = "[{method: CLIP}, {method: CIBR, dropout: 0.5}, {method: untried}]"
    (tmp_path / "final.yaml").write_text(f"{final}conditions: {{few: {{methods: {methods}}}}}")
    tried = read_plan(tmp_path / "trials.yaml")
    clip = [run for run, settings in tried.runs.items() if settings["method"] == "CLIP"]
    column = "validation_image_to_text_recall@1"
    for number, run in enumerate(clip):
        row = {
            "run": run,
            "configuration": json.dumps(tried.runs[run]),
            "commit": "",
            column: [0.2, 0.3][number],
        }
        (tmp_path / f"{run}.json").write_text(json.dumps(row))
        collect(tried, tmp_path)
        plan = read_plan(tmp_path / "final.yaml")
        assert plan.waiting == ("few: CLIP", "few: CIBR")[number:]
    fixed = {
        "corruption": {"fraction": 0.1},
        "dataset": "glyphs",
        "condition": "few",
        "method": "CLIP",
        "beta": 0,
    }
    expected = [fixed | {"temperature": 0.2, "suites": ["mini"], "seed": seed} for seed in (1, 2)]
    expected += [
        {"method": "untried", "condition": "few", "suites": ["mini"], "seed": seed}
        for seed in (1, 2)
    ]
    assert [*plan.runs.values()] == expected
    for run in set(tried.runs) - set(clip):
        row = {
            "run": run,
            "configuration": json.dumps(tried.runs[run]),
            "commit": "",
            "error": "step 3 diverged",
        }
        (tmp_path / f"{run}.json").write_text(json.dumps(row))
    collect(tried, tmp_path)
    with pytest.raises(ValueError, match="trials.csv: every trial of 'CIBR' in 'few' diverged"):
        read_plan(tmp_path / "final.yaml")


def test_a_run_that_diverges_leaves_its_error_as_a_row(tmp_path, monkeypatch):
    def diverge(settings, folder):
        raise FloatingPointError("step 3 was not taken: it is not finite")

    monkeypatch.setattr("cibr_book.run.train_and_measure", diverge)
    settings = {"method": "CLIP", "beta": 0, "seed": 1}
    row = save_row(settings, tmp_path / "x.json", "cibr_book.run.train_and_measure")
    assert row == json.loads((tmp_path / "x.json").read_text())
    assert row["error"].startswith("step 3") and "validation_recall@1" not in row
