"""What a YAML file expands to, and that the committed tables are those of the committed plans."""

import hashlib
import json
import pkgutil
import re
from pathlib import Path

import pandas as pd
import pytest

from cibr_book.experiments import ablation
from cibr_book.experiments import run as study
from cibr_book.experiments.confirmation import FORMS, SEEDS, best_forms
from cibr_book.experiments.plan import (
    _decisive,
    _run_id,
    collect,
    committed,
    read_plan,
    save_row,
)
from cibr_book.experiments.tables import read_table

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
SWEEPS = sorted(FOLDER.glob("*.yaml"))
# Of the ids, sorted, one a line: the drawn points and settings of these sweeps are frozen.
IDS = {
    "finished/levelled": "fcc9f72cc98e94a550713b7aefaf7b81cb10a182ff91093684411c2d40b4afc5",
    "finished/confirmation": "c6e3a9f7e2a4740db548baa8c1fbf30b7a9e82650918e881b1cabf30a869af0f",
    "ablation": "f503469d3359e56a8ceab4c6e850da33a6fc55239b763dcd8b7dcb19b89fbb97",
    "finished/moving": "5935fd9bb3e4b4b6ba9ad5e28fb686a5859eac94ce7ddaaae6ff569a7738f80b",
    "finished/moving-fair": "295d594868d739565accfd6ac4b87dc2ab674527b86faad10b839a86c93d61f0",
    "doses": "81f8603376f6137a94195205ebf1c52516480791c0e002cb3873998d72c0eb47",
    "finished/recipes": "3e7e115a02005d997f37f2b856d643869952a086854fb8d02194acaad9c9a4e0",
}
# Plans that have runs and, of some, trials whose ids they state.
WITH_TRIALS = ("doses", "gains", "finished/moving-fair", "finished/moving-temperature")
FEW = {"corruption": {"fraction": 0.1}, "condition": "few"}
SMALL = """
results: rows.csv
fixed: {dataset: glyphs, suites: [[glyphs]]}
conditions:
  few:
    fixed: {corruption: {fraction: 0.1}}
    methods:
      - {method: CLIP, beta: 0, seed: [1, 2]}
      - {method: CIBR, together: [{beta: 0.1}, {beta: 0.2}], dataset: flickr8k, seed: 1}
"""


def write_rows(plan, folder, runs):
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


@pytest.fixture(scope="module", params=IDS)
def sweep(request):
    """A frozen plan and its name."""
    return request.param, read_plan(FOLDER / f"{request.param}.yaml")


def test_the_committed_plans_draw_the_points_whose_rows_are_committed(sweep):
    name, plan = sweep
    assert hashlib.sha256("\n".join(sorted(plan.runs)).encode()).hexdigest() == IDS[name]
    rows = committed(plan.results).set_index("run")
    assert rows.index.is_unique and set(rows.index) >= set(plan.runs) and not plan.waiting
    for run, own in plan.runs.items():
        row = rows.loc[run]
        assert _run_id(json.loads(row["configuration"])) == run and row["commit"]
        names = ["method", "condition", "beta", "seed"]
        assert [str(own.get(name, "")) for name in names] == row[names].tolist()


def test_a_sweep_runs_what_its_plan_says(sweep):
    name, plan = sweep
    if name != "finished/levelled":  # which has the trials
        stated = (FOLDER / f"{name}.md").read_text()
        assert f"{len(plan.runs)} runs" in stated and f"`{IDS[name]}`" in stated
    if name == "finished/confirmation":
        planned = pd.DataFrame(plan.runs.values())
        forms = planned[planned["method"].isin(FORMS)].groupby("condition")["method"].unique()
        assert forms.explode().to_dict() == best_forms(read_table("confirmation_trials.csv"))
        main = planned[~planned["method"].str.endswith("over beta")]
        seeds = main.groupby(["condition", "method"])["seed"].agg(sorted)
        assert all(own == SEEDS for own in seeds)


def test_the_sweep_that_the_page_shows_can_be_planned(tmp_path):
    page = (FOLDER.parent / "book/howto/sweep.md").read_text("utf-8")
    own, trials = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "mine.yaml").write_text(own)
    (tmp_path / "mine_trials.yaml").write_text(trials)
    plan = read_plan(tmp_path / "mine_trials.yaml")
    methods = [run["method"] for run in plan.runs.values()]
    assert methods == ["CLIP"] * 8 + ["CIBR vMF"] * 8
    assert read_plan(tmp_path / "mine.yaml").waiting


def test_rows_are_collected_once_as_text_and_only_those_of_the_plan(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    plan = read_plan(tmp_path / "small.yaml")
    (tmp_path / "000000000000.json").write_text("{}")
    values = [{"value": 1 / 3, "beta": 0}, {"value": 0.5, "beta": 0.1, "shifts": True}]
    runs = list(plan.runs)[:2]
    write_rows(plan, tmp_path, dict(zip(runs, values, strict=True)))
    assert collect(plan, tmp_path) == 0
    rows = committed(plan.results)
    assert rows["run"].tolist() == runs and rows["commit"].tolist() == ["", ""]
    assert rows["value"].tolist() == [str(1 / 3), "0.5"] and rows["beta"].tolist() == ["0", "0.1"]
    assert rows["shifts"].tolist() == ["", "true"]


def test_methods_start_from_their_best_trial_once_all_trials_have_rows(tmp_path):
    trials = SMALL.replace("rows.csv", "trials.csv")
    tuned = "dropout: [0.1, 0.2, 0.3], cca_ridges: [[3, 1]], seed: [7, 8]"
    trials = trials.replace("seed: [1, 2]", tuned)
    (tmp_path / "trials.yaml").write_text(trials)
    (tmp_path / "others.yaml").write_text("results: trials.csv\nconditions: {}")
    final = "results: rows.csv\ntrials: [others.yaml, trials.yaml]\n"
    final += "fixed: {dataset: flickr8k}\nconditions:"
    methods = "{method: CLIP}, {method: CIBR, dropout: 0.5}, {method: untried}"
    methods = f"[{methods}, {{method: curve, like: CLIP, beta: [0.1, 0.2]}}]"
    (tmp_path / "final.yaml").write_text(f"{final} {{few: {{methods: {methods}}}}}")
    others = "{more: {tuned_at: few, fixed: {seed: 9}, methods: [{method: CLIP}]}}"
    (tmp_path / "more.yaml").write_text(f"{final} {others}")
    tried = read_plan(tmp_path / "trials.yaml")
    clip = [run for run, own in tried.runs.items() if own["method"] == "CLIP"]
    recalls = 0.5, 0.1, 0.4, 0.3, 0.9, None  # with both seeds, the second is best
    for i, (run, recall) in enumerate(zip(clip, recalls, strict=True)):
        waiting = read_plan(tmp_path / "final.yaml").waiting
        assert waiting == ("few: CLIP", "few: CIBR", "few: curve")
        scores = {"validation_image_to_text_recall@1": recall}
        scores["mini/mean of 7/accuracy@1"] = 0.5
        scores["mini/flickr8k/image_to_text_recall@1"] = 0.9 - 0.5 * i  # a test score selects none
        write_rows(tried, tmp_path, {run: scores if recall else {"error": "diverged"}})
    plan = read_plan(tmp_path / "final.yaml")
    assert plan.waiting == ("few: CIBR",)
    fixed = {"dataset": "flickr8k", "condition": "few"}
    best = FEW | {"method": "CLIP", "beta": 0, "dropout": 0.2, "cca_ridges": [3, 1]}
    curve = [best | fixed | {"method": "curve", "beta": beta} for beta in (0.1, 0.2)]
    assert [*plan.runs.values()] == [best | fixed, fixed | {"method": "untried"}, *curve]
    more = best | fixed | {"condition": "more", "seed": 9}
    assert [*read_plan(tmp_path / "more.yaml").runs.values()] == [more]
    diverged = {run: {"error": "diverged"} for run in tried.runs if run not in clip}
    write_rows(tried, tmp_path, diverged)
    with pytest.raises(ValueError, match="'CIBR' in 'few' diverged"):
        read_plan(tmp_path / "final.yaml")
    (tmp_path / "more.yaml").write_text(f"{final} {others.replace('few', 'Few')}")
    with pytest.raises(ValueError, match="trials.yaml has no 'CLIP' in 'Few', which 'more' names"):
        read_plan(tmp_path / "more.yaml")


def test_trials_are_those_of_the_plan():
    for name in WITH_TRIALS:
        runs, stated = read_plan(FOLDER / f"{name}-trials.yaml").runs, FOLDER / f"{name}.md"
        digest = hashlib.sha256("\n".join(sorted(runs)).encode()).hexdigest()
        assert re.search(rf"{len(runs):,} trials.*\n`{digest}`", stated.read_text("utf-8"))


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_a_sweep_that_is_not_finished_has_its_code_and_known_settings(file):
    plan = read_plan(file)
    work = pkgutil.resolve_name(plan.work)
    if work in (study.train_and_measure, ablation.train_and_measure):
        for settings in plan.runs.values():
            study.library_settings(_decisive(settings))


def test_finished_plans_and_sweeps_are_in_their_list_and_have_their_rows():
    listed = (FOLDER / "finished" / "README.md").read_text("utf-8")
    for file in (FOLDER / "finished").glob("*.yaml"):
        plan = read_plan(file)
        assert f"`{file.stem}`" in listed and f"`{plan.results.name}`" in listed
        assert set(plan.runs) <= set(committed(plan.results)["run"])
    for file in (FOLDER / "finished").glob("*.md"):
        assert f"({file.name})" in listed or file.name == "README.md"


def test_a_row_has_the_names_the_settings_and_the_metrics_or_the_error(tmp_path, monkeypatch):
    def work(own, folder):
        if own["beta"]:
            raise FloatingPointError("step 3 was not taken: it is not finite")
        return {"metric": 1 / 3, "undefined": float("nan"), "n": len(own)}

    name = "cibr_book.experiments.run.train_and_measure"
    monkeypatch.setattr(name, work)
    own = {"method": "CLIP", "condition": "few", "seed": 1}
    rows = [save_row(own | {"beta": beta}, tmp_path / "x.json", name) for beta in (0, 1)]
    assert rows[1] == json.loads((tmp_path / "x.json").read_text())
    assert rows[0].items() >= (own | {"beta": 0, "metric": 0.333333, "n": 2}).items()
    assert rows[0]["configuration"] == '{"beta": 0, "seed": 1}' and "undefined" not in rows[0]
    assert rows[1]["error"].startswith("step 3") and "metric" not in rows[1]


def test_the_best_trial_is_that_of_recall_and_accuracy_or_of_the_chosen_score(tmp_path):
    clip = "conditions: {few: {methods: [{method: CLIP, %s}]}}"
    trials = tmp_path / "trials.yaml"
    trials.write_text(f"results: trials.csv\n{clip % 'dropout: [0.1, 0.2], seed: 1'}")
    recall, accuracy = "validation_image_to_text_recall@1", "mini/mean of 7/accuracy@1"
    scores = [{recall: 0.5, accuracy: 0.2}, {recall: 0.4, accuracy: 0.6}]
    write_rows(read_plan(trials), tmp_path, dict(zip(read_plan(trials).runs, scores, strict=True)))
    for choose, best in {"seed: 2": 0.2, "choose: validation": 0.1}.items():
        final = tmp_path / "final.yaml"
        final.write_text(f"results: rows.csv\ntrials: trials.yaml\n{clip % choose}")
        (run,) = read_plan(final).runs.values()
        assert run["dropout"] == best


def test_the_plan_of_fine_tuning_states_the_ids_of_its_sweeps():
    text = " ".join((FOLDER / "finetune.md").read_text("utf-8").split())
    stated = re.findall(r"(\d+)(?: runs)? of `(finetune[\w-]*)\.yaml` `(\w{64})`", text)
    assert len(stated) >= 6
    for n, name, digest in stated:
        lines = "".join(f"{run}\n" for run in sorted(read_plan(FOLDER / f"{name}.yaml").runs))
        assert len(lines.splitlines()) == int(n), name
        assert hashlib.sha256(lines.encode()).hexdigest() == digest, name
