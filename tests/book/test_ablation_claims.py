"""Every number in the prose of the ablation and its evidence is of their tables; conclusions hold
in the rows.
"""

import json
import re
from pathlib import Path

import pytest

from cibr.losses.vmf import vmf_mean_cosine
from cibr_book.tables import (
    HEADLINE,
    chosen,
    comparisons,
    differences,
    in_points,
    read_table,
    survivors,
)

BOOK = Path(__file__).resolve().parents[2] / "book"
DIFFERENCE = re.compile(r"[+-]\d+\.\d\d \[[+-]\d+\.\d\d, [+-]\d+\.\d\d\]")
ALL, FEW, GREY, CAPITAL = (
    "Flickr8k",
    "Flickr8k, 10 % of the pairs",
    "Flickr8k, spurious grey",
    "glyphs, spurious polarity",
)
SHUFFLED, ANEW = "Flickr8k, 30 % shuffled captions", "Flickr8k, 30 % shuffled captions, drawn anew"
START, ANCHOR = "CLIP, CCA start + crops", "CIBR anchor + crops"
THEIRS = "CIBR (vMF|MINE|crossfit)"  # forms of the penalty that the paper proposes


@pytest.fixture(scope="module")
def prose():
    cells = [
        c
        for n in ("ablation", "evidence")
        for c in json.loads((BOOK / f"{n}.ipynb").read_text())["cells"]
    ]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"```(?:bash|{math})\n.*?```|`[^`\n]+`", "", text, flags=re.DOTALL)


@pytest.fixture(scope="module")
def rows():
    return read_table()


@pytest.fixture(scope="module")
def found(rows):
    return comparisons(rows)


@pytest.fixture(scope="module")
def curves(found):
    """The penalties over beta on photos, where the temperature is fixed."""
    return found[found["method"].str.match(THEIRS) & found["condition"].isin(conditions(found))]


def conditions(found):
    """Of photos, those with a curve of MINE, and so of every penalty."""
    return {
        name
        for name in found.loc[found["method"] == "CIBR MINE", "condition"]
        if name.startswith("Flickr8k")
    }


def row(found, condition, method, against="CLIP", beta=None):
    """The three differences of one method as the chapter prints them."""
    own = found[
        (found["condition"] == condition)
        & (found["method"] == method)
        & (found["against"] == against)
    ]
    cells = in_points(own if beta is None else own[own["beta"] == beta])
    assert len(cells) == 1
    return [text.rstrip(" *") for text in cells.iloc[0][[*HEADLINE]]]


def gains(found, condition, method, against="CLIP", beta=None):
    own = found[
        (found["condition"] == condition)
        & (found["method"] == method)
        & (found["against"] == against)
    ]
    own = own if beta is None else own[own["beta"] == beta]
    return [own.set_index("measure")["significance"][measure] == "gain" for measure in HEADLINE]


def test_every_difference_in_the_prose_is_one_of_the_comparisons(prose, found):
    texts = in_points(found, ("condition", "method", "beta", "hyperparameters", "against")).stack()
    assert len(DIFFERENCE.findall(prose)) > 30
    assert set(DIFFERENCE.findall(prose)) <= {text.rstrip(" *") for text in texts}


def test_the_sentences_on_the_main_findings_have_the_numbers_of_their_rows(prose, found):
    claims = {
        "With all pairs, the vMF bound scores": row(found, ALL, "CIBR vMF", beta=0.1),
        "at a beta of 0.1, and": row(found, ALL, "CIBR vMF", beta=1),
        "With 20 % they score": row(found, few_pairs(20), START),
        "over 24 seeds, it adds": row(found, FEW, ANCHOR, START),
        "canonical correlation analysis (the *CCA start*) score": row(
            found, ALL, "CLIP, CCA start"
        ),
        "with three captions in ten shuffled": row(found, ANEW, "CLIP, CCA start"),
        "With 10 % of the pairs, self-training scores": row(found, FEW, "CLIP, self-training"),
        "the start improves zero-shot accuracy too,": row(found, ANEW, "CLIP, CCA start"),
        "and the anchor scores": row(found, ANEW, "CIBR anchor"),
        "the anchor itself contributes": row(found, ANEW, "CIBR anchor", "CLIP, CCA start"),
        "and more from text to image,": row(found, ANEW, "CIBR anchor", "CLIP, CCA start"),
        "Same-item *consistency* adds": row(
            found, CAPITAL, "consistency", "CLIP, same grouped batches"
        ),
        "grouped batches on glyphs, and": row(
            found, GREY, "consistency", "CLIP, same grouped batches"
        ),
        "Relative to CLIP it scores": row(found, GREY, "CLIP, in both styles"),
        "on photos, and on glyphs": row(found, CAPITAL, "CLIP, in both styles"),
        "relative to the anchor with crops it scores": row(
            found, FEW, "CLIP, self-training", ANCHOR
        ),
        "many correct pairs: **CCA start**": row(found, ALL, "CLIP, CCA start"),
        "captions: **self-training**‡ (10 %)": row(found, FEW, "CLIP, self-training"),
        "**CCA start, crops, anchor** (10 %)": row(found, FEW, ANCHOR),
        "captions: **CCA start and anchor** (30 %)": row(found, ANEW, "CIBR anchor"),
        "**both styles** (photos)": row(found, GREY, "CLIP, in both styles"),
        "**consistency**† (glyphs)": row(
            found, CAPITAL, "consistency", "CLIP, same grouped batches"
        ),
        "the same† on photos": row(found, GREY, "consistency", "CLIP, same grouped batches"),
        "consistency, and on photos": row(found, GREY, "CLIP, in both styles", "consistency"),
    }
    for words, expected in claims.items():
        assert prose.count(words) == 1, words
        assert DIFFERENCE.findall(prose.split(words)[1])[:3] == expected, words


def test_no_weight_of_the_papers_penalty_gains_in_all_three_scores(found):
    own = found[
        found["method"].str.match(THEIRS)
        & (found["significance"] == "gain")
        & (found["against"] == "CLIP")
    ]
    by = ["condition", "method", "beta", "hyperparameters"]
    assert own.groupby(by)["measure"].nunique().max() < len(HEADLINE)
    for page in ("README.md", "book/intro.md"):
        assert "none improves all three scores" in " ".join(
            (BOOK.parent / page).read_text().split()
        )


def test_curves_are_flat_up_to_a_tenth_and_retrieval_falls_at_the_largest_weights(curves, prose):
    low = curves[curves["beta"] <= 0.1]
    most = f"moves a score on photos by more than {low['difference'].abs().max():.2f} points"
    pages = [
        " ".join((BOOK.parent / page).read_text().split())
        for page in ("README.md", "book/intro.md")
    ]
    assert all(most in text for text in (prose, *pages))
    ends = f"(intervals from {low['low'].min():+.1f} to {low['high'].max():+.1f})"
    assert all(ends in text for text in (prose, *pages))
    reach = low[low["measure"] == "image to text"]
    assert f"up to 0.1 run from {reach['low'].min():+.1f} to {reach['high'].max():+.1f}" in prose
    gained = curves[(curves["measure"] == "zero-shot") & (curves["significance"] == "gain")]
    assert all(
        f"improve zero-shot accuracy, by up to {gained['difference'].max():.2f} points" in t
        for t in pages
    )
    largest = curves[(curves["beta"] == 3) & (curves["measure"] != "zero-shot")]
    assert (largest["significance"] == "loss").all() and len(largest) >= 12


def few_pairs(share):
    return f"Flickr8k, {share} % of the pairs"


def test_with_few_pairs_the_start_and_crops_gain_most_and_the_anchor_adds_from_text_to_image(
    found, prose
):
    for share in (5, 10, 20, 30):
        assert gains(found, few_pairs(share), "closed-form CCA")[1:] == [False, True]
        assert gains(found, few_pairs(share), START)[1:] == [share != 10, True]
        assert gains(found, few_pairs(share), ANCHOR, START) == [share in (5, 30), False, True]
    own = found[
        (found["method"] == ANCHOR)
        & (found["against"] == START)
        & (found["measure"] == "text to image")
    ]
    assert own["difference"].between(0.25, 0.5).all() and len(own) == 4
    over = found[
        found["method"].str.startswith("CIBR anchor")
        & found["against"].str.startswith("CLIP, CCA start")
    ]
    most = over.loc[over["measure"] == "zero-shot", "difference"].max()
    assert f"up to {most:.1f} points of zero-shot accuracy in some conditions" in prose
    assert gains(found, few_pairs(20), START) == [True] * 3
    ours = found[(found["condition"] == FEW) & (found["method"] == ANCHOR)]
    whole = ours[ours["against"] == "CLIP"].set_index("measure")["difference"]
    assert (ours[ours["against"] == START].set_index("measure")["difference"] < 0.5 * whole).all()
    both = " + two captions + noise"
    assert gains(found, FEW, ANCHOR + both, START + both) == [False] * 3


def test_with_all_pairs_the_start_alone_gains_of_all_controls_and_the_anchor_adds_nothing(found):
    controls = found[(found["condition"] == ALL) & (found["against"] == "CLIP")]
    gained = controls[
        ~controls["method"].str.contains("CIBR") & (controls["significance"] == "gain")
    ]
    assert set(gained["method"]) == {"CLIP, CCA start"}
    assert gains(found, ALL, "CLIP, CCA start") == [True, False, True]
    assert gains(found, ALL, "CIBR anchor", "CLIP, CCA start") == [False] * 3


def test_with_shuffled_captions_the_anchor_gains_in_all_three_scores_and_adds_to_its_start(
    found, curves
):
    assert gains(found, SHUFFLED, "CIBR anchor") == [True] * 3
    assert gains(found, SHUFFLED, "CLIP, CCA start") == [False, True, True]
    assert gains(found, SHUFFLED, "CIBR anchor", "CLIP, CCA start") == [True, False, False]
    assert gains(found, SHUFFLED, "CIBR anchor", "CLIP, CCA start, anchor's settings") == [True] * 3
    assert gains(found, ANEW, "CIBR anchor") == gains(found, ANEW, "CLIP, CCA start") == [True] * 3
    assert gains(found, ANEW, "CIBR anchor", "CLIP, CCA start") == [True, False, True]
    own = found[
        (found["condition"] == SHUFFLED) & (found["method"] == "CIBR vMF") & (found["beta"] == 0.3)
    ]
    assert own.set_index("measure")["significance"][[*HEADLINE[:2]]].tolist() == ["gain", "loss"]
    largest = curves.nlargest(2, "difference")
    assert set(largest["condition"]) == {SHUFFLED} and set(largest["beta"]) == {0.3}


def test_self_training_gains_in_all_three_scores_and_the_anchor_on_top_of_it_gains_nothing(found):
    over_anchor = []
    for share in (5, 10, 20, 30):
        assert gains(found, few_pairs(share), "CLIP, self-training") == [True] * 3
        condition = found["condition"] == few_pairs(share)
        own = found[
            condition & (found["method"] == "CLIP, self-training") & (found["against"] == ANCHOR)
        ]
        over_anchor.append(own.set_index("measure")["difference"]["zero-shot"])
    assert sorted(over_anchor, reverse=True) == over_anchor
    assert gains(found, FEW, "CIBR anchor, self-training", "CLIP, self-training") == [False] * 3


def test_where_a_style_is_spurious_augmentation_gains_as_much_as_consistency_or_more(found):
    assert gains(found, CAPITAL, "consistency", "CLIP, same grouped batches") == [True] * 3
    assert (
        gains(found, CAPITAL, "CLIP, in both styles")
        == gains(found, GREY, "CLIP, in both styles")
        == [True] * 3
    )
    assert gains(found, CAPITAL, "CLIP, in both styles", "consistency") == [False] * 3
    assert gains(found, GREY, "CLIP, in both styles", "consistency") == [True] * 3


def test_what_probes_read_at_large_weights_is_as_the_text_says(rows):
    third = "Flickr8k, 30 % of the pairs"
    photos = rows[
        rows["condition"].isin([ALL, third, FEW]) & rows["method"].isin(["CLIP", "CIBR vMF"])
    ]
    photo = photos[["leakage_image_brightness", "leakage_image_colourfulness"]].mean(axis=1)
    people = photos[["shared_image_people", "shared_text_people"]].mean(axis=1)
    photos = photos.assign(photo=photo, people=people, length=photos["leakage_text_length"])
    found = differences(photos, ["photo", "length", "people"])
    found = found.set_index(["condition", "measure", "beta"])["significance"]
    assert found[FEW, "photo", 1] == "loss" and found[FEW, "length", 1] == "gain"
    assert found[ALL, "photo", 1] == found[third, "photo", 1] == "not significant"
    assert found[ALL, "people", 0.3] == found[third, "people", 0.3] == "loss"


def test_every_other_number_in_the_prose_is_a_setting_of_the_study(prose, rows, found):
    rest = DIFFERENCE.sub("", prose)
    ranges = (
        r"by (?:more than|up to) \d\.\d\d points|(?:run|intervals) from [+-]\d\.\d to [+-]\d\.\d"
    )
    rest = re.sub(f"{ranges}|up to \\d\\.\\d points of zero-shot accuracy in some", "", rest)
    learned = (
        rows[rows["condition"].str.endswith("learned")].groupby("beta")["last_temperature"].mean()
    )
    seeds = found.loc[(found["method"] == ANCHOR) & (found["against"] == START), "n_seeds"].max()
    numbers = set(re.findall(r"(?<![\w.,])\d+(?:[.,]\d+)*(?![\w.,]*\w)", rest))
    sizes = {"600", "6,000", "60"} | {
        str(len(t)) for t in (rows, read_table("ablation_trials.csv"))
    }
    sizes |= {f"{value:.3f}" for value in learned} | {str(seeds)}
    weight = 10 * float(vmf_mean_cosine(8192, 512)) * 0.03  # kappa_b A(kappa_e) T, of a beta of 1
    clip = rows[(rows["condition"] == ALL) & (rows["method"] == "CLIP") & (rows["seed"] <= 5)]
    sizes |= {f"{weight:.2f}", *clip[[*HEADLINE]].mean().map("{:.1f}".format)}
    sizes |= {
        str(found["p_value"].notna().sum()),
        *survivors(found)["Benjamini-Hochberg"].astype(str),
    }
    sizes |= {"0", "0.003", "0.03", "0.05", "0.1", "0.3", "1", "3", "5", "10", "20", "30", "95"}
    assert numbers <= sizes, numbers - sizes


def test_consistency_penalises_the_images_alone(rows):
    settings = (
        rows[rows["method"] == "consistency"]
        .set_index("condition")["configuration"]
        .map(json.loads)
    )
    spurious = settings[settings.index.str.contains("spurious")]
    assert {s["text_weight"] for s in spurious} == {0}


def test_the_anchors_trials_chose_the_smallest_beta_on_offer_with_a_tenth_of_the_pairs():
    trials = read_table("ablation_trials.csv")
    anchor = trials[(trials["condition"] == FEW) & trials["method"].str.startswith("CIBR anchor")]
    assert set(chosen(anchor)["beta"]) == {anchor["beta"].min()} == {1}
