"""What the README and the ablation's chapter claim in so many words, held to the tables."""

from pathlib import Path

import nbformat
import pandas as pd

from cibr.sweep.findings import interval_text, recommend
from cibr.sweep.study import read_study

ROOT = Path(__file__).resolve().parents[1]


def test_the_numbers_of_the_readme_are_those_of_the_tables():
    readme = " ".join((ROOT / "README.md").read_text().split())
    rows = pd.read_csv(ROOT / "data" / "results" / "ablation_differences.csv")
    headline = rows[rows["measure"].isin(["zero-shot mean", "image to text", "text to image"])]
    siblings = headline[(headline["arm"] == "CIBR siblings") & (headline["beta"] == 0.3)]
    best = siblings[siblings["setting"] == "glyphs, polarity tied to the word 'capital'"]
    assert len(best) == 6 and (best["verdict"] == "above 0").all() and set(best["n_seeds"]) == {8}
    for row in best[best["against"] == "CLIP"].to_dict("records"):
        assert interval_text(row) in readme
    photos = headline[headline["arm"].str.startswith("CIBR") & headline["setting"].str.startswith("flickr8k")]
    gains = photos[photos["verdict"] == "above 0"].groupby(["setting", "arm", "beta"])["measure"].agg(set)
    assert all(said == {"zero-shot mean"} for said in gains)
    crossfit = photos[photos["arm"] == "CIBR cross-fitted"]
    told = [
        crossfit[(crossfit["beta"] == 0.1) & (crossfit["n_seeds"] == 10)],
        crossfit[crossfit["setting"] == "flickr8k, 30 % of the pairs"],
        siblings[(siblings["setting"] == "flickr8k, contours tied to the word 'dog'")],
        headline[(headline["setting"] == "glyphs") & (headline["arm"] == "CIBR vMF")],
    ]
    for rows in told:
        of_mean = rows[(rows["measure"] == "zero-shot mean") & (rows["against"] == "CLIP")]
        assert [interval_text(row) in readme for row in of_mean.to_dict("records")] == [True]


def test_the_answer_of_the_ablation_is_that_of_its_tables():
    said = next(
        cell.source
        for cell in nbformat.read(ROOT / "book" / "ablation.ipynb", as_version=4).cells
        if cell.id == "answer"
    )
    arms, differences, _ = read_study(ROOT / "data" / "results")
    advice = recommend(differences, arms).set_index("setting")
    gaining = advice["gaining"][advice["gaining"].map(len) > 0]
    assert all(setting.startswith("glyphs") and " tied to the word " in setting for setting in gaining.index)
    betas = sorted(gaining["glyphs, polarity tied to the word 'capital'"])
    assert betas == [f"CIBR siblings (beta = {beta:g})" for beta in (0.1, 0.3, 1)]
    assert all(name.startswith("CIBR siblings") for names in gaining for name in names)
    assert "{term}`sibling` penalty; any $\\beta$ from 0.1 to 1 did" in said
