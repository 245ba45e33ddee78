"""The numbers typed into the first page are those of the committed tables."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cibr_book.experiments import ablation, recipes
from cibr_book.experiments.confirmation import HITS, best_forms, photo_intervals, with_measures
from cibr_book.experiments.plan import read_plan
from cibr_book.experiments.tables import differences, read_table

ROOT = Path(__file__).resolve().parents[3]
CONDITIONS = (
    "Flickr8k",
    "Flickr8k, 10 % of the pairs",
    "Flickr8k, 30 % shuffled captions, drawn anew",
)
PHOTOS = ("recall on Flickr8k", "recall on coco-mini")
METHODS = {
    "CLIP heads, %": ["CLIP"] * 3,
    "penalty, MINE (our reading of the paper)": ["CIBR MINE"] * 3,
    "CCA": ["closed-form CCA"] * 3,
}


@pytest.fixture(scope="module")
def gain():
    """A method's mean difference from tuned CLIP, in points; of CLIP itself the mean."""
    means = with_measures(read_table("confirmation.csv")).groupby(["condition", "method"])

    def of(condition, method, measure="recall on Flickr8k", control="CLIP"):
        mean = means[measure].mean()[condition]
        return mean[method] - (0 if method == "CLIP" else mean[control])

    return of


def test_the_first_table_has_the_numbers_of_the_confirmation(gain):
    forms = best_forms(read_table("confirmation_trials.csv"))
    name = "penalty, best of three simpler forms on validation"
    simpler = {name: [forms[condition] for condition in CONDITIONS]}
    text = (ROOT / "book/intro.md").read_text("utf-8")
    for title, methods in (METHODS | simpler).items():
        row = re.search(rf"^\| {re.escape(title)} \|(.*)\|$", text, re.MULTILINE)[1]
        printed = [float(number) for cell in row.split("|") for number in cell.split("/")]
        cells = [(*c, photos) for c in zip(CONDITIONS, methods, strict=True) for photos in PHOTOS]
        assert printed == [pytest.approx(gain(*cell), abs=0.0501) for cell in cells], title
    found = differences(with_measures(read_table("confirmation.csv")), [*PHOTOS])
    names = {name for row in (METHODS | simpler).values() for name in row}
    shown = found[found["method"].isin(names)]
    halves = ((shown["high"] - shown["low"]) / 2).groupby(shown["measure"]).max()
    limits = re.search(r"over the 16 seeds at most ±(\S+) / ±([\d.]+);", text).groups()
    assert all(halves[photos] < float(limit) for photos, limit in zip(PHOTOS, limits, strict=True))
    claims = shown[shown["method"] != "CLIP"].assign(control="CLIP", hypothesis="")
    with np.load(HITS) as hits:
        over_photos = photo_intervals(claims, with_measures(read_table("confirmation.csv")), hits)
    over_photos["half"] = (over_photos["high"] - over_photos["low"]) / 2
    (line,) = re.findall(r"over test photos, too, the penalty's at most (.*)", text)
    said = [float(half.rstrip(".")) for half in re.findall(r"±([\d.]+)", line)]
    is_penalty = over_photos["method"].str.startswith("CIBR")
    for part, limits in ((over_photos[is_penalty], said[:2]), (over_photos[~is_penalty], said[2:])):
        widest = part.groupby("measure")["half"].max()
        assert all(limit - 0.1 < widest[p] < limit for p, limit in zip(PHOTOS, limits, strict=True))


def test_the_first_page_says_what_better_ridges_give_cca():
    rows = pd.read_csv(ROOT / "data/results/recipes.csv")
    rows = recipes.against_clip(rows).query("condition == '6,000 photos' and method == 'CCA'")
    gains = rows[rows["score"] == "mean"].groupby("test")["difference"].mean()
    text = (ROOT / "book/intro.md").read_text("utf-8")
    said = re.search(r"`evidence-recipes` it is at (\S+) / (\S+)\.\n", text).groups()
    assert [*map(float, said)] == [pytest.approx(gains[test], abs=0.0501) for test in recipes.SETS]


def test_the_first_pages_print_the_range_of_the_penaltys_changes(gain):
    forms = best_forms(read_table("confirmation_trials.csv"))
    cells = [(c, name) for c in CONDITIONS for name in (forms[c], "CIBR MINE")]
    number = r"([+-]\d\.\d)"
    for page in ("book/intro.md", "README.md"):
        words = " ".join((ROOT / page).read_text("utf-8").split())
        for what, measures in (("recall", PHOTOS), ("zero-shot accuracy", ["zero-shot accuracy"])):
            said = re.search(
                rf"{what}(?: over eleven sets)? by {number} to {number}", words
            ).groups()
            found = [gain(*cell, measure) for cell in cells for measure in measures]
            ends = min(found), max(found)
            assert [*map(float, said)] == [pytest.approx(end, abs=0.0501) for end in ends], what


def test_the_first_page_and_readme_have_the_losses_of_the_figure():
    rows = ablation.with_measures(read_table("ablation.csv"))
    few = rows.query("condition == @CONDITIONS[1]").groupby(["method", "beta"])
    means = few[["search", ablation.ZERO_SHOT]].mean()
    lost = means.loc["CLIP", 0.0] - means.min()
    for page in ("book/intro.md", "README.md"):
        text = (ROOT / page).read_text("utf-8")
        said = re.search(r"both fall, by up to (\d+) and (\d+) points", text).groups()
        assert [*map(int, said)] == [round(lost.iloc[i]) for i in (0, 1)]
        assert re.search(r"retuned\S*,\s+vMF loses\s+about half as much", text)
    retuned = rows.query("condition == '600 photos, retuned' and seed > 0")
    left = means.loc[("CLIP", 0.0), "search"] - retuned.groupby("beta")["search"].mean()
    whole = means.loc[("CLIP", 0.0), "search"] - means.loc["vMF", "search"]
    shares = left / whole.loc[left.index]
    assert len(shares) == 3 and shares.between(0.4, 0.6).all()
    (near,) = re.findall(r"bound stays near (\d+)\)", (ROOT / "book/intro.md").read_text("utf-8"))
    bounds = retuned.groupby("beta")["residual_bound_8192"].mean()
    assert bounds.to_numpy() == pytest.approx(np.full(3, float(near)), rel=0.07)


def test_the_page_on_own_loops_has_the_losses_of_the_ablation():
    text = (ROOT / "book/howto/own_loop.ipynb").read_text("utf-8")
    said = re.search(r"= 0.05 cost (\S+) points of search, .* = 0.2 cost (\S+) \(", text).groups()
    rows = ablation.with_measures(read_table("ablation.csv")).query("condition == 'Flickr8k'")
    search = rows.set_index(["method", "beta", "seed"])["search"].sort_index()
    for beta, points in zip((0.05, 0.2), said, strict=True):
        lost = (search["CLIP", 0.0] - search["vMF", beta]).mean()
        assert float(points) == pytest.approx(lost, abs=0.0501)


def test_the_first_page_has_the_gain_of_the_penalty_beside_the_longest_training():
    text = (ROOT / "book/intro.md").read_text("utf-8")
    said = re.search(r"cross-fitting gains (\S+) in search \(by a plan", text)[1]
    rows = ablation.with_measures(read_table("ablation.csv"))
    rows = rows[rows["condition"] == "6,000 photos, 160 epochs, planned"]
    means = rows.groupby("method")["search"].mean()
    assert float(said) == pytest.approx(means["cross-fitting"] - means["CLIP"], abs=0.0501)


def test_the_page_on_sweeps_names_every_sweep_and_its_hours():
    text = (ROOT / "book/howto/sweep.md").read_text("utf-8")
    rows = re.findall(r"results/(\w+\.csv)>` \| (.*) \| (\d+) \|", text)
    for table, sweeps, hours in rows:
        for sweep in re.findall(r"`([\w-]+)`", sweeps):
            plan = read_plan(ROOT / f"experiments/{sweep}.yaml")
            assert plan.results.name == table
        seconds = pd.read_csv(ROOT / "data/results" / table)["seconds"].sum()
        assert float(hours) == pytest.approx(seconds / 7200, abs=0.55)  # on two cores
    named = {sweep for _, sweeps, _ in rows for sweep in re.findall(r"`([\w-]+)`", sweeps)}
    files = (ROOT / "experiments").glob("*.yaml")
    assert named == {file.stem for file in files if read_plan(file).results.exists()}
