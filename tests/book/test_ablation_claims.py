"""Every number in the prose of the ablation's chapter is of its tables, and its conclusions hold in the rows."""

import json
import re
from pathlib import Path

import pytest

from cibr_book.tables import HEADLINE, chosen, differences, in_points, read_table

NOTEBOOK = Path(__file__).resolve().parents[2] / "book" / "ablation.ipynb"
DIFFERENCE = re.compile(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]")
FEW, GREY, CAPITAL = "Flickr8k, 10 % of the pairs", "Flickr8k, spurious grey", "glyphs, spurious polarity"
CONTROLS = ["CLIP, CCA start + crops", "CLIP, CCA start", "closed-form CCA"]
CONTROLS += ["CLIP, self-training", "CIBR anchor + crops"]


@pytest.fixture(scope="module")
def prose():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return re.sub(
        r"`[^`]*`|```.*?```", "", "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    )


@pytest.fixture(scope="module")
def rows():
    return read_table()


@pytest.fixture(scope="module")
def found(rows):
    return differences(rows)


def sentence(found, condition, method, beta):
    """The three differences of one method as the chapter prints them."""
    cells = in_points(found).loc[(condition, method, beta), [*HEADLINE]]
    return [text.removesuffix(" *") for text in cells]


def told(prose, words, n=3):
    """The first differences after some words of the chapter."""
    assert prose.count(words) == 1, words
    return DIFFERENCE.findall(prose.split(words)[1])[:n]


def test_every_difference_in_the_prose_is_one_of_the_table_against_a_control_that_the_chapter_names(prose, rows):
    controls = ["CLIP", "noise only", *CONTROLS]
    tables = [in_points(differences(rows, control=control)) for control in controls]
    assert set(DIFFERENCE.findall(prose)) <= {text.removesuffix(" *") for t in tables for text in t.stack()}


def test_the_sentences_on_the_main_findings_have_the_numbers_of_their_rows(prose, rows, found):
    start = differences(rows[rows["condition"] == FEW], control=CONTROLS[0])
    training = differences(rows[rows["condition"] == FEW], control="CLIP, self-training")
    anchor = differences(rows[rows["condition"] == FEW], control="CIBR anchor + crops")
    claims = {
        "and feature noise at": sentence(found, FEW, "CIBR anchor + crops + two captions + noise", 1.0),
        "The same without the penalty is at": sentence(found, FEW, f"{CONTROLS[0]} + two captions + noise", 0.0),
        "without any training, at": sentence(found, FEW, "closed-form CCA", 0.0),
        "With crops only, the anchor adds": sentence(start, FEW, "CIBR anchor + crops", 1.0),
        "at hand, self-training is at": sentence(found, FEW, "CLIP, self-training", 0.0),
        "anchor with crops at": sentence(anchor, FEW, "CLIP, self-training", 0.0),
        "on top of it gains nothing, ": sentence(training, FEW, "CIBR anchor, self-training", 1.0),
        "*consistency* is at": sentence(found, CAPITAL, "consistency", 0.3),
        "glyphs and at": sentence(found, GREY, "consistency", 0.3),
        "CLIP on every image in both styles is at": sentence(found, GREY, "CLIP, in both styles", 0.0),
    }
    for words, expected in claims.items():
        assert told(prose, words) == expected, words


def test_the_anchor_gains_in_all_three_scores_and_its_own_share_from_text_to_image_alone(rows, found):
    whole = found[(found["condition"] == FEW) & (found["method"] == "CIBR anchor + crops + two captions + noise")]
    assert (whole["significance"] == "gain").all() and (whole["n_seeds"] == 8).all()
    share = differences(rows[rows["condition"] == FEW], control=CONTROLS[0])
    share = share[share["method"] == "CIBR anchor + crops"]
    gains = share.set_index("measure")["significance"] == "gain"
    assert gains.to_dict() == {"zero-shot": False, "image to text": False, "text to image": True}
    training = found[(found["condition"] == FEW) & (found["method"] == "CLIP, self-training")]
    assert (training["significance"] == "gain").all()
    best = found[found["condition"] == FEW].groupby("measure")["value"].idxmax()
    assert found.loc[best[["zero-shot", "text to image"]], "method"].str.contains("self-training").all()


def test_no_weight_of_the_papers_penalty_gains_in_all_three_scores(found):
    ours = found[found["method"].str.match("CIBR (vMF|MINE|crossfit)") & (found["significance"] == "gain")]
    assert ours.groupby(["condition", "method", "beta"])["measure"].nunique().max() < len(HEADLINE)


def test_the_curves_are_flat_below_a_tenth_and_lose_all_three_scores_at_the_largest_weight(found):
    curves = found[found["method"].str.match("CIBR (vMF|MINE|crossfit)") & (found["condition"] == FEW)]
    low = curves[curves["beta"] <= 0.1]
    assert low["difference"].abs().max() < 0.25
    largest = curves[curves["beta"] == 3]
    assert (largest["significance"] == "loss").all() and largest["method"].nunique() == 3


def test_with_all_pairs_small_weights_move_little_and_a_weight_of_one_loses_retrieval(found):
    curves = found[found["method"].isin(["CIBR vMF", "CIBR MINE"]) & (found["condition"] == "Flickr8k")]
    assert set(curves["method"]) == {"CIBR vMF", "CIBR MINE"}
    low = curves[curves["beta"] <= 0.1]
    assert low["difference"].abs().max() < 0.35 and not (low["significance"] == "loss").any()
    retrieval = curves[(curves["beta"] == 1) & (curves["measure"] != "zero-shot")]
    assert len(retrieval) == 4 and (retrieval["significance"] == "loss").all()


def test_probes_read_less_of_image_only_factors_at_large_weights_and_no_less_of_people(rows):
    few = rows[rows["condition"] == FEW]
    few = few.assign(leakage=few[["leakage_image_brightness", "leakage_image_colourfulness"]].mean(axis=1))
    few = few.assign(people=few[["shared_image_people", "shared_text_people"]].mean(axis=1))
    found = differences(few[few["method"].isin(["CLIP", "CIBR vMF", "CIBR vMF, sampled"])], ["leakage", "people"])
    by_beta = found.set_index(["measure", "beta"]).sort_index()
    for beta in (1, 3):
        share = by_beta.loc[("leakage", beta)]["difference"] / by_beta.loc[("leakage", beta)]["control"]
        assert share.between(-0.25, -0.05).all() and (by_beta.loc[("people", beta)]["difference"] > 0).all()
    assert (by_beta.loc["leakage"].query("beta < 0.2")["difference"].abs() < 0.003).all()


def test_every_other_number_in_the_prose_is_a_setting_of_the_study(prose, rows):
    rest = DIFFERENCE.sub("", prose)
    numbers = set(re.findall(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w.,]*\w)", rest))
    sizes = {"600", "6,000", "30,000", "20"} | {str(len(t)) for t in (rows, read_table("ablation_trials.csv"))}
    assert numbers <= sizes | {"0", "0.05", "0.1", "0.3", "0.5", "1", "3", "5", "10", "30", "95"}, numbers
    assert len(rows) and rows["seed"].max() >= 8


def test_augmentation_has_eight_seeds_on_photos_and_three_on_glyphs_as_is_said(found):
    both = found[found["method"] == "CLIP, in both styles"].groupby("condition")["n_seeds"].unique()
    assert both.map(list).to_dict() == {CAPITAL: [3], GREY: [8]}


def test_consistency_penalises_the_images_alone(rows):
    settings = rows[rows["method"] == "consistency"].set_index("condition")["configuration"].map(json.loads)
    spurious = settings[settings.index.str.contains("spurious")]
    assert {s["text_weight"] for s in spurious} == {0}


def test_the_anchor_chose_the_smallest_beta_on_offer():
    trials = read_table("ablation_trials.csv")
    anchor = trials[(trials["condition"] == FEW) & trials["method"].str.startswith("CIBR anchor")]
    assert set(chosen(anchor)["beta"]) == {anchor["beta"].min()}
