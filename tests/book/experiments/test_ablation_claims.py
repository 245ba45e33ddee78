"""The numbers printed in the ablation and its evidence are those of the tables."""

import pytest
from prose import DIFFERENCE, NUMBER, prose

from cibr.losses.vmf import vmf_mean_cosine
from cibr_book.experiments.tables import (
    HEADLINE,
    comparisons,
    in_points,
    read_table,
    survivors,
)

PAGES = ("book/ablation.ipynb", "book/evidence.ipynb")


@pytest.fixture(scope="module")
def rows():
    return read_table()


@pytest.fixture(scope="module")
def compared(rows):
    return comparisons(rows)


@pytest.mark.parametrize("page", PAGES)
def test_every_difference_with_an_interval_is_one_of_the_comparisons(page, compared):
    index = ("condition", "method", "beta", "hyperparameters", "against")
    known = {text.rstrip(" *") for text in in_points(compared, index).stack()}
    printed = set(DIFFERENCE.findall(prose(page)))
    assert printed and printed <= known, printed - known


def test_every_other_number_of_the_two_chapters_is_a_setting_or_a_summary_of_the_rows(
    rows, compared
):
    penalty = compared["method"].str.match("CIBR (vMF|MINE|crossfit)")
    has_mine = compared.loc[compared["method"] == "CIBR MINE", "condition"]
    on_photos = compared["condition"].isin(has_mine[has_mine.str.startswith("Flickr8k")])
    photos = compared[penalty & on_photos].set_index("measure")
    gain = photos.loc[photos["significance"] == "gain", "difference"].max()
    shuffled = photos[(photos["beta"] == 0.3) & photos["condition"].str.contains("shuffled")]
    cost = shuffled.loc[shuffled["method"].str.contains("vMF"), "difference"].loc["recall"].min()
    largest = photos.loc[photos["beta"] <= 0.1, "difference"].abs().groupby("measure").max()
    starts = compared[(compared["method"] == "CLIP, CCA start") & (compared["measure"] == "recall")]
    starts = starts[starts["condition"] != "Flickr8k"]["difference"]
    cca = compared[(compared["method"] == "closed-form CCA") & (compared["measure"] == "recall")]
    clip = rows[
        (rows["condition"] == "Flickr8k") & (rows["method"] == "CLIP") & (rows["seed"] <= 5)
    ]
    learned = rows[rows["condition"].str.endswith("learned")].groupby("beta")["last_temperature"]
    weight = 10 * float(vmf_mean_cosine(8192, 512)) * 0.03  # kappa_b A(kappa_e) T, of a beta of 1
    known = {f"{x:.1f}" for x in (*starts, *clip[[*HEADLINE]].mean())}
    known |= {f"{abs(x):.2f}" for x in (weight, gain, cost, *largest, cca["difference"].min())}
    known |= {f"{x:.3f}" for x in learned.mean()}
    known |= {str(len(table)) for table in (rows, read_table("ablation_trials.csv"))}
    known |= {str(compared["p_value"].notna().sum())}
    known |= set(survivors(compared)["Benjamini-Hochberg"].astype(str))
    known |= {"600", "6,000", "5", "10", "20", "30", "95", "8192", "1024", "512"}
    known |= {"0", "0.003", "0.03", "0.05", "0.1", "0.3", "1", "3"}
    for page in PAGES:
        printed = set(NUMBER.findall(DIFFERENCE.sub("", prose(page))))
        assert printed <= known, printed - known


def test_every_significant_loss_but_three_is_of_a_large_weight(compared):
    losses = compared[(compared["q_value"] < 0.05) & (compared["significance"] == "loss")]
    small = losses[losses["beta"] < 0.3].sort_values(["method", "condition"])
    assert small[["method", "beta", "condition"]].values.tolist() == [
        ["CIBR MINE", 0.1, "Flickr8k"],
        ["CIBR MINE", 0.1, "Flickr8k, 30 % shuffled captions"],
        ["closed-form CCA", 0.0, "Flickr8k"],
    ]
    gains = compared[(compared["q_value"] < 0.05) & (compared["significance"] == "gain")]
    forms = gains[gains["method"].str.contains("vMF|MINE|crossfit") & (gains["beta"] <= 0.3)]
    assert set(forms["condition"]) <= {
        "Flickr8k",
        "Flickr8k, 30 % shuffled captions",
        "Flickr8k, spurious grey",
    }
