"""The sentences about the stored curve, from rows of known answers and from the stored ones."""

import pandas as pd
import pytest

from cibr_book.experiments import study
from cibr_book.pages import curve


def table_of(differences, measures=tuple(study.CURVE)):
    """Rows of `over_beta`: a difference for each method and beta, the same for all measures but the
    last, where it is twice as large.
    """
    rows = []
    for (method, beta), difference in differences.items():
        for measure in measures:
            own = difference * (2 if measure == measures[-1] else 1)
            row = {"method": method, "beta": beta, "measure": measure, "difference": own}
            rows.append(row | {"low": own - 0.1, "high": own + 0.1, "value": 40 + own})
    return pd.DataFrame(rows)


def test_the_gains_of_penalties_are_said_with_their_intervals():
    differences = {("vMF", 0.05): 0.07, ("vMF", 0.1): 0.2, ("vMF", 1.0): -3.0}
    differences |= {("crossfit", 0.05): 0.04, ("crossfit", 1.0): -1.0}
    differences |= {("MINE", 0.05): -0.15, ("MINE", 1.0): -0.06}
    said = curve.penalties(table_of(differences))
    assert "no mean moves by more than 0.30 points" in said
    best = "+0.40 points (+0.30 to +0.50), in text retrieval on MSCOCO at $\\beta$ = 0.1"
    assert f"largest gain is {best}" in said
    assert "zero-shot accuracy changes by +0.20 points (+0.10 to +0.30)" in said
    assert "of cross-fitting is +0.08 points" in said and "of MINE -0.06 points" in said
    assert "At $\\beta$ = 1, 11 of 15 intervals lie below zero and none above." in said
    above = table_of(differences | {("MINE", 1.0): 0.5})
    assert "10 of 15 intervals lie below zero and 5 above" in curve.penalties(above)


def test_the_parts_are_said_at_the_price_where_the_whole_gains_most():
    differences = {("vMF", 0.1): 0.2, ("vMF", 0.3): -1.0, ("gap only", 0.1): 0.25}
    differences |= {("contrast only", 0.1): 0.01, ("anchor", 0.1): -0.3, ("anchor", 0.3): 0.4}
    said = curve.parts(table_of(differences))
    assert said.startswith("In text retrieval on MSCOCO at $\\beta$ = 0.1, gap only has +0.50")
    assert "vMF +0.40 points" in said and "contrast only +0.02 points" in said
    assert "+0.80 points (+0.70 to +0.90) in text retrieval on MSCOCO at $\\beta$ = 0.3" in said


def test_the_light_is_said_in_per_cent():
    measures = ("modality gap", "brightness", "colour")
    table = table_of({("vMF", 0.1): -0.02, ("vMF", 1.0): -0.05}, measures)
    table["value"] = 0.3 + table["difference"]
    said = curve.light(table, {"modality gap": 0.3, "brightness": 0.3, "colour": 0.3})
    assert "At $\\beta$ = 0.1 the gap is 0.28, with CLIP 0.30." in said
    assert "Of brightness probes read 28.0 %, a change of -2.0 (-12.0 to +8.0)." in said
    assert "Of colour probes read 20.0 %, a change of -10.0 (-20.0 to +0.0)." in said


def test_other_settings_have_values_at_zero_and_differences_elsewhere():
    rows = []
    for condition, temperature in (("curve, temperatures", 0.2), ("curve, 3,000 photos", 0.07)):
        table = table_of({("CLIP", 0): 0.0, ("vMF", 0.3): -1.0})
        rows.append(table.assign(condition=condition, temperature=temperature))
    found = curve.other_settings(pd.concat(rows))
    clip = found.loc[("600 photos, temperature 0.2", "0")]
    assert clip["search, Flickr8k"] == "40.0"
    vmf = found.loc[("3,000 photos, temperature 0.07", "0.3")]
    assert vmf["text retrieval, MSCOCO"] == "-2.00 (-2.10 to -1.90)"
    assert list(found) == study.CURVE and len(found) == 4


@pytest.fixture(scope="module")
def stored():
    rows = study.read_rows("curve")
    assert rows.columns.is_unique and len(rows) == 318
    return study.over_beta(rows[rows["condition"] == "curve, 600 photos"], study.CURVE)


def test_the_stored_curve_is_what_its_page_says(stored):
    """The headings of the page, which are typed and no number of theirs is computed."""
    of = stored.set_index(["measure", "method", "beta"]).sort_index()
    texts = of.loc["text retrieval, MSCOCO"]
    assert texts.loc[("gap only", 0.1), "low"] > 0 and texts.loc[("vMF", 0.1), "low"] > 0
    assert texts.loc[("contrast only", 0.1), "low"] < 0 < texts.loc[("contrast only", 0.1), "high"]
    assert texts.loc[("vMF", 1.0), "high"] < 0
    assert of.loc[("zero-shot", "vMF"), "difference"].is_monotonic_decreasing
    assert of.loc[("search, MSCOCO", "anchor", 0.3), "low"] > 0


def test_a_sharp_temperature_is_as_its_paragraph_says():
    rows = study.read_rows("curve")
    found = study.over_beta(rows, [*study.CURVE, "modality gap"])
    of = found.set_index(["temperature", "beta", "measure"]).sort_index()
    gaps = {x: of.loc[(x, 0, "modality gap"), "value"].mean() for x in (0.04, 0.0969, 0.1, 0.2)}
    assert gaps[0.04] > max(gaps[x] for x in (0.0969, 0.1, 0.2))
    at = of[of["condition"] == "curve, temperatures"]["difference"]
    for measure in ("search, MSCOCO", "text retrieval, MSCOCO"):
        assert at[0.04, 0.05, measure] > max(at[0.1, 0.05, measure], at[0.2, 0.05, measure])
    assert at[0.04, 0.05, "zero-shot"] < min(at[0.1, 0.05, "zero-shot"], at[0.2, 0.05, "zero-shot"])
    few = of[of["condition"] == "curve, 600 photos"]
    clip = few[few["method"] == "CLIP"]["value"]
    sharp = of[of["condition"] == "curve, temperatures"]["value"]
    for measure, least, most in (("search, MSCOCO", 0, 0.5), ("text retrieval, MSCOCO", 0.9, 1)):
        tuned = clip[0.0969, 0, measure] - sharp[0.04, 0, measure]
        assert least < tuned / at[0.04, 0.05, measure] < most
