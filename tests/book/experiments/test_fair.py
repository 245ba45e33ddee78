"""The tests of moving-fair.md and doses.md on made-up rows, and the sets where starts are known."""

import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from cibr.utils import project_root
from cibr_book.experiments import fair
from cibr_book.experiments.confirmation import measure_columns
from cibr_book.experiments.fair import DOSES, MOVING, SEEDS
from cibr_book.experiments.tables import read_table

COLUMNS = measure_columns()
COUNTED = [COLUMNS[f"accuracy on {name}"][0] for name in fair.SETS]
MEASURED = {name: COLUMNS[f"{name}, Flickr8k"] for name in ("text to image", "image to text")}
MEASURED |= {"all eleven": COLUMNS["zero-shot accuracy"], "counted": COUNTED}


def runs(condition, method, noise=0.0, seeds=SEEDS, **gains):
    """Rows of a method: its gains in `MEASURED`, with noise of alternating signs."""
    rows = []
    for i, seed in enumerate(seeds):
        row = {"condition": condition, "method": method, "seed": seed, "error": None}
        row |= {name: 0.5 + seed / 1e4 for of in COLUMNS.values() for name in of}
        for what, gain in gains.items():
            row |= {n: row[n] + gain + noise * (-1) ** i for n in MEASURED[what.replace("_", " ")]}
        rows.append(row)
    return rows


def test_three_claims_are_of_the_planned_runs_and_of_the_sets_that_count():
    rows = runs(MOVING, "CLIP") + runs(MOVING, "noise only", text_to_image=0.3)
    rows += runs(MOVING, "vMF", all_eleven=-0.9, counted=0.95, text_to_image=0.01)
    rows += runs(MOVING, "MINE", counted=-0.01, noise=0.001)
    rows += runs(MOVING, "vMF", seeds=[1, 2], text_to_image=-0.4)  # trials
    rows += runs("600 photos", "vMF", text_to_image=-0.4)
    tests = fair.claim_tests(pd.DataFrame(rows))
    assert tests["outcome"].tolist() == ["holds", "contradicted", "holds"]
    assert tests["difference"].to_numpy() == pytest.approx([5, -1, 1])
    assert tests["holm"].to_numpy() == pytest.approx([3 / 2**16, 1, 3 / 2**16])
    vmf = next(row for row in rows if (row["method"], row["seed"]) == ("vMF", 915))
    vmf |= dict.fromkeys(COUNTED) | {"error": "diverged"}
    diverged = fair.claim_tests(pd.DataFrame(rows))["difference"]
    assert diverged[0] == pytest.approx((15 * 5 - 50 - 9.15) / 16)
    with pytest.raises(ValueError, match="'vMF' and 'CLIP' need zero-shot accuracy with each"):
        fair.claim_tests(pd.DataFrame([row for row in rows if row is not vmf]))


def test_a_dose_is_equal_only_if_both_one_sided_tests_say_so():
    rows = runs(DOSES, "CLIP") + runs(DOSES, "vMF at 0.2", seeds=[1], text_to_image=-0.4)
    for dose, noise, *gains in (
        (0.05, 0.004, 0.001, 0),
        (0.2, 0.02, -0.003, 0.004),
        (0.75, 0.004, -0.02, 0.02),
    ):
        gains = dict(zip(("text_to_image", "image_to_text"), gains, strict=True))
        rows += runs(DOSES, f"vMF at {dose}", noise, **gains)
    tests = fair.dose_tests(pd.DataFrame(rows)).set_index(["method", "measure"])
    assert dict(tests["outcome"].groupby(level=1, sort=False).agg(list)) == {
        "search": ["holds", "undecided", "contradicted"],
        "naming": ["holds", "undecided", "contradicted"],
    }
    gain = [0.1 + 0.4, 0.1 - 0.4] * 8
    sides = ((0.5, "less"), (-0.5, "greater"))
    p_value = max(ttest_1samp(gain, at, alternative=side).pvalue for at, side in sides)
    assert tests.loc[("vMF at 0.05", "search"), "p_value"] == pytest.approx(p_value)
    assert tests["holm"].min() == pytest.approx(6 * tests["p_value"].min())


def test_sets_count_where_the_committed_starts_beat_chance():
    table = fair.start_accuracy(read_table("moving.csv"))
    assert table.index[table["beats_chance"]].tolist() == fair.SETS
    plan = (project_root() / "experiments" / "moving-fair.md").read_text("utf-8")
    for name, start, chance, _ in table.itertuples():
        assert f"| {name} | {start:.1f} | {chance:.1f} |" in plan
