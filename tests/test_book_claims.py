"""What the README and the ablation's chapter claim in so many words, held to the tables."""

from pathlib import Path

import nbformat
import pandas as pd

from cibr.sweep import measure_differences
from cibr.sweep.findings import interval_text, recommend
from cibr.sweep.study import read_study

ROOT = Path(__file__).resolve().parents[1]
README = " ".join((ROOT / "README.md").read_text().split())

TIED = [f"{look} tied to the word 'dog'" for look in ("contours", "grey")]
TIED += [f"{TIED[1]}, last block trained"]


def test_the_numbers_of_the_readme_are_those_of_the_tables():
    rows = pd.read_csv(ROOT / "data" / "results" / "ablation_differences.csv")
    headline = rows[rows["measure"].isin(["zero-shot mean", "image to text", "text to image"])]
    siblings = headline[(headline["arm"] == "CIBR siblings") & (headline["beta"] == 0.3)]
    for size, n_seeds in (("", 8), ("at the preset's size, ", 5)):
        best = siblings[siblings["setting"] == f"glyphs, {size}polarity tied to the word 'capital'"]
        assert len(best) == 6 and (best["verdict"] == "above 0").all() and set(best["n_seeds"]) == {n_seeds}
        for row in best[best["against"] == "CLIP"].to_dict("records"):
            assert interval_text(row) in README
    photos = headline[headline["arm"].str.startswith("CIBR") & headline["setting"].str.startswith("flickr8k")]
    gains = photos[photos["verdict"] == "above 0"].groupby(["setting", "arm", "beta"])["measure"].agg(set)
    assert all(said == {"zero-shot mean"} for said in gains)
    crossfit = photos[photos["arm"] == "CIBR cross-fitted"]
    of_noisy = headline[headline["setting"] == "glyphs, 30 % wrong captions"]
    told = [
        crossfit[crossfit["setting"] == "flickr8k, 30 % of the pairs"],
        *(siblings[siblings["setting"] == f"flickr8k, {setting}"] for setting in TIED),
        headline[(headline["setting"] == "glyphs") & (headline["arm"] == "CIBR vMF")],
        *(of_noisy[(of_noisy["arm"] == arm) & (of_noisy["n_seeds"] == 5)] for arm in ("CIBR vMF", "noise only")),
    ]
    for rows in told:
        of_mean = rows[(rows["measure"] == "zero-shot mean") & (rows["against"] == "CLIP")]
        assert [interval_text(row) in README for row in of_mean.to_dict("records")] == [True]


def test_the_readme_tells_cross_fitting_by_the_seeds_that_came_after_its_choice():
    arms, _, _ = read_study(ROOT / "data" / "results")
    later = arms[(arms["setting"] == "flickr8k") & (arms["seed"] > 5)]
    rows = measure_differences(later, ["mini/mean of 7/accuracy@1"]).to_dict("records")
    assert [(row["arm"], row["n_seeds"]) for row in rows] == [("CIBR cross-fitted", 10)]
    assert f"{interval_text(rows[0])} on ten seeds that came after the choice" in README


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
    means = differences[(differences["measure"] == "zero-shot mean") & (differences["verdict"] == "above 0")]
    photos = means[means["setting"].str.startswith("flickr8k") & (means["against"] == "CLIP")]
    points = 100 * photos.set_index("arm")["difference"]
    assert set(points["CIBR siblings"].round()) == {1, 2} and len(points["CIBR siblings"]) == len(TIED)
    assert points["CIBR cross-fitted"].max() < 0.5 and set(points.index) == {"CIBR siblings", "CIBR cross-fitted"}
    assert "one or two points with the sibling penalty" in said
    assert "less than half a point with cross-fitting" in said


def test_where_the_wording_is_tied_too_the_look_stays_and_nothing_gains():
    arms, differences, _ = read_study(ROOT / "data" / "results")
    rows = differences[differences["setting"] == "flickr8k, grey and keywords tied to the word 'dog'"]
    assert {"CIBR siblings", "CLIP in groups"} == set(rows["arm"]) and set(rows["n_seeds"]) == {5}
    headline = rows[rows["measure"].isin(["zero-shot mean", "image to text", "text to image"])]
    assert len(headline) == 9 and not (headline["verdict"] == "above 0").any()
    leaks = measure_differences(arms[arms["arm"] != "CLIP in groups"], ["leakage_image_grey"])
    removed = -100 * leaks[leaks["beta"] == 0.3].set_index("setting")["difference"]
    assert removed["flickr8k, grey and keywords tied to the word 'dog'"] < 10
    assert removed["flickr8k, grey tied to the word 'dog'"] > 50


def test_on_photos_with_a_tied_look_the_sets_with_dogs_gain_and_no_other():
    _, differences, _ = read_study(ROOT / "data" / "results")
    tied = differences[differences["setting"].isin([f"flickr8k, {setting}" for setting in TIED])]
    siblings = tied[(tied["arm"] == "CIBR siblings") & (tied["against"] == "CLIP")]
    above = siblings[siblings["verdict"] == "above 0"].groupby("setting")["measure"].agg(set)
    assert len(above) == len(TIED)
    for measures in above:
        assert {"cifar10", "pacs"} <= measures
        assert not [name for name in measures - {"cifar10", "zero-shot mean"} if not name.startswith("pacs")]


def test_among_mixed_looks_clip_loses_recall_and_the_penalty_is_worth_no_more():
    arms, _, _ = read_study(ROOT / "data" / "results")
    grey = arms[arms["setting"] == "flickr8k, grey tied to the word 'dog'"]
    directions = ("image_to_text", "text_to_image")
    clip = grey[grey["arm"] == "CLIP"]
    for direction in directions:
        lost = clip[f"mini/flickr8k/{direction}_recall@1"] - clip[f"mixed_looks_{direction}_recall@1"]
        assert len(lost) == 8 and 0.005 < lost.mean() < 0.03
    found = measure_differences(grey, [f"mixed_looks_{direction}_recall@1" for direction in directions])
    assert len(found) == 4 and set(found["verdict"]) == {"around 0"} and set(found["n_seeds"]) == {8}


def test_with_wrong_captions_the_gain_of_vmf_is_not_told_from_that_of_its_noise():
    arms, _, _ = read_study(ROOT / "data" / "results")
    noisy = arms[(arms["setting"] == "glyphs, 30 % wrong captions") & (arms["beta"] < 0.1)]
    mean = "glyphs/mean of 7/accuracy@1"
    against_clip = measure_differences(noisy, [mean]).set_index("arm")
    assert against_clip.loc["CIBR vMF", "verdict"] == "above 0" and set(against_clip["n_seeds"]) == {5}
    assert 2 * against_clip.loc["noise only", "difference"] > against_clip.loc["CIBR vMF", "difference"]
    vmf_and_noise = noisy[noisy["arm"].isin(["CIBR vMF", "noise only"])].replace({"arm": {"noise only": "CLIP"}})
    assert measure_differences(vmf_and_noise, [mean])["verdict"].tolist() == ["around 0"]
