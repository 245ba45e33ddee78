"""The figure "move beta": its points are differences of committed rows, as is its table."""

import json
import re

import pytest

from cibr.losses import CIBRLoss
from cibr.losses.vmf import vmf_mean_cosine
from cibr.train import RunConfig
from cibr.utils import project_root
from cibr_book import explorer
from cibr_book.ablation_figures import CURVES
from cibr_book.explorer import as_page, curves
from cibr_book.tables import HEADLINE, comparisons, read_table


@pytest.fixture(scope="module")
def data():
    return curves()


def test_points_are_mean_differences_to_clip_of_the_committed_rows(data):
    rows = read_table().set_index("seed")
    conditions = data["conditions"]
    assert conditions[0]["name"] == "Flickr8k" and len(conditions) >= 4
    for condition in conditions:
        of_condition = rows[rows["condition"] == condition["name"]]
        clip = of_condition[of_condition["method"] == "CLIP"]
        for curve in condition["curves"]:
            betas = [point["beta"] for point in curve["points"]]
            assert betas == sorted(set(betas)) and betas[0] > 0 and len(betas) >= 3
            own = of_condition[of_condition["method"] == curve["name"]]
            for point in curve["points"]:
                at = own.loc[own["beta"] == point["beta"], [*HEADLINE]]
                expected = (at - clip.loc[at.index, [*HEADLINE]]).mean()
                assert point["difference"] == pytest.approx(expected.tolist(), abs=0.006)
                assert point["n_seeds"] == len(at)
                ends = zip(point["low"], point["difference"], point["high"], strict=True)
                assert all(low < mean < high for low, mean, high in ends)


def test_a_point_survives_where_the_study_counts_it_as_significant_after_correction(data):
    rows = comparisons(read_table()).query("against == 'CLIP' and q_value < 0.05")
    names = ["condition", "method", "beta", "measure"]
    expected = set(rows[names].itertuples(index=False, name=None))
    found = set()
    alone = 0
    for condition in data["conditions"]:
        for curve in condition["curves"]:
            for point in curve["points"]:
                for i, measure in enumerate(HEADLINE):
                    key = condition["name"], curve["name"], point["beta"], measure
                    assert point["survives"][i] == (key in expected), key
                    found |= {key} if point["survives"][i] else set()
                    differs = point["low"][i] > 0 or point["high"][i] < 0
                    alone += differs and not point["survives"][i]
    assert ("Flickr8k", "CIBR crossfit", 0.1, "zero-shot") in found
    assert ("Flickr8k, 30 % shuffled captions", "CIBR vMF", 0.1, "zero-shot") not in found
    assert alone > 0  # the verdict has its third kind
    gains = rows[rows["method"].isin(CURVES) & (rows["difference"] > 0)]
    on_photos = gains[gains["condition"].str.startswith("Flickr8k")].groupby("measure")
    assert set(on_photos.get_group("recall")["condition"]) == {"Flickr8k, spurious grey"}
    assert "CIBR MINE" not in set(gains["method"])  # api/penalties.md says both
    assert on_photos.get_group("zero-shot")["difference"].max() < 1


def test_the_page_converts_beta_from_the_studys_concentration_to_the_default():
    page = (project_root() / "book" / "explore.md").read_text("utf-8")
    rows = read_table()
    runs = rows.loc[rows["method"].isin(CURVES), "configuration"].map(json.loads)
    (studied,) = {run["kappa_e"] for run in runs}
    default = RunConfig().kappa_e
    assert (
        f"have $\\kappa_e$ = {studied:,.0f}; the default of `CIBRLoss` is {default:,.0f}." in page
    )
    assert default == CIBRLoss(beta=0.1).kappa_e
    for dim in (512, 128):
        factor = vmf_mean_cosine(studied, dim) / vmf_mean_cosine(default, dim)
        assert f"by {float(factor):.2f} in {dim}" in page


def test_the_page_holds_the_numbers_for_the_script_and_as_a_table(data, monkeypatch):
    monkeypatch.setattr(explorer, "curves", lambda: data)
    page = as_page()
    held = json.loads(re.search(r'json" id="explorer-data">(.*?)</script>', page)[1])
    assert held == data and page.count("</svg>") == len(data["scores"]) == 2
    points = [p for c in data["conditions"] for curve in c["curves"] for p in curve["points"]]
    assert page.count("<tr") == 1 + len(points)
    names = ("difference", "low", "high", "survives")
    scores = [of for p in points for of in zip(*(p[name] for name in names), strict=True)]
    for mean, low, high, survives in scores:
        stars = " **" if survives else ""
        assert f"<td>{mean:+.2f} [{low:+.2f}, {high:+.2f}]{stars}</td>" in page
