"""The tests of fair plans on made-up rows, and the sets where starts are known."""

import pandas as pd
import pytest

from cibr_book.experiments import confirmation, fair
from cibr_book.experiments.confirmation import measure_columns
from cibr_book.experiments.tables import RESULTS, read_table

OF = measure_columns()
OF |= {"search": OF["text to image, Flickr8k"], "naming": OF["image to text, Flickr8k"]}
OF["counted"] = [OF[f"accuracy on {name}"][0] for name in fair.SETS]


def runs(condition, method, noise=0.0, seeds=fair.SEEDS, **gains):
    """Rows of a method: its gains, with noise of alternating signs."""
    rows = []
    for seed in seeds:
        row = {name: 0.5 + seed / 1e4 for of in OF.values() for name in of}
        for measure, gain in gains.items():
            row |= {name: row[name] + gain + noise * (-1) ** seed for name in OF[measure]}
        rows.append(row | {"condition": condition, "method": method, "seed": seed, "error": None})
    return rows


def test_three_claims_are_of_the_planned_runs_and_of_the_sets_that_count():
    vmf = runs(fair.MOVING, "vMF", **{"zero-shot accuracy": -0.9}, counted=0.95, search=0.01)
    rows = vmf + runs(fair.MOVING, "MINE", 0.001, counted=-0.01, search=0.1)
    rows += runs(fair.MOVING, "CLIP") + runs("600 photos", "vMF", search=-0.4)
    rows += runs(fair.MOVING, "vMF", seeds=[1, 2], search=-0.4)  # trials
    tests = fair.claim_tests(pd.DataFrame(rows))
    assert tests["outcome"].tolist() == ["holds", "contradicted", "holds"]
    assert tests["difference"].to_numpy() == pytest.approx([5, -1, 1])
    assert tests["holm"].to_numpy() == pytest.approx([3 / 2**16, 1, 3 / 2**16])
    vmf[-1] |= dict.fromkeys(OF["counted"]) | {"error": "diverged"}  # seed 915
    diverged = fair.claim_tests(pd.DataFrame(rows))["difference"]
    assert diverged[0] == pytest.approx((15 * 5 - 50 - 9.15) / 16)
    with pytest.raises(ValueError, match="'vMF' and 'CLIP' need zero-shot accuracy with each"):
        fair.claim_tests(pd.DataFrame(rows[1:]))


def test_two_claims_are_of_runs_with_temperatures_of_their_own():
    rows = runs(fair.TEMPERATURE, "CLIP", seeds=fair.LATER_SEEDS) + runs(fair.MOVING, "CLIP")
    rows += runs(fair.TEMPERATURE, "vMF", 0.001, fair.LATER_SEEDS, search=0.01, counted=-0.01)
    rows += runs(fair.TEMPERATURE, "vMF", seeds=[1, 2], search=-0.4)  # trials
    tests = fair.temperature_tests(pd.DataFrame(rows))
    assert tests["outcome"].tolist() == ["holds", "contradicted"]
    assert tests["difference"].to_numpy() == pytest.approx([1, -1])
    assert tests["holm"][0] == pytest.approx(2 / 2**16)


def test_a_beta_is_equal_only_if_both_one_sided_tests_say_so():
    rows = runs(fair.BETAS, "CLIP") + runs(fair.BETAS, "vMF at 0.2", seeds=[1], search=-0.4)
    rows += runs(fair.BETAS, "vMF at 0.05", 0.004, search=0.001, naming=-0.001)
    rows += runs(fair.BETAS, "vMF at 0.2", 0.004, search=-0.006, naming=0.006)
    rows += runs(fair.BETAS, "vMF at 0.75", 0.004, search=-0.02, naming=0.02)
    tests = fair.beta_tests(pd.DataFrame(rows))
    assert [*tests["outcome"][::2]] == ["holds", "undecided", "contradicted"]  # in search
    assert [*tests["outcome"][1::2]] == ["holds", "undecided", "contradicted"]
    assert tests["holm"].min() == pytest.approx(6 * tests["p_value"].min())


def test_sets_count_where_the_committed_starts_beat_chance():
    table = fair.start_accuracy(read_table("moving.csv"))
    assert table.index[table["beats_chance"]].tolist() == fair.SETS
    plan = (RESULTS.parents[1] / "experiments/finished/moving-fair.md").read_text("utf-8")
    for name, start, chance, _ in table.itertuples():
        assert f"| {name} | {start:.1f} | {chance:.1f} |" in plan


def test_the_summary_has_gains_over_heads_seed_by_seed():
    """On the committed rows, beside differences that are taken here in another way."""
    rows = confirmation.with_measures(read_table("confirmation.csv"))
    parts = [fair.with_measures(read_table(f"{name}.csv")) for name in ("moving", "ablation")]
    alike = pd.concat(parts)
    closed = read_table("gains.csv")
    found = fair.summary(rows, alike, closed)
    recall = alike.set_index(["condition", "method", "seed"])[["search", "naming"]].mean(axis=1)
    of_rows = [(fair.MOVING, "vMF"), (fair.TEMPERATURE, "vMF"), (fair.MOVING, "MINE")]
    of_rows += [(fair.MOVING, "noise only")]
    gains = [(recall[plan][method] - recall[plan]["CLIP"]).mean() for plan, method in of_rows]
    is_moved = found["group"].str.contains("last stages")
    assert [*found[is_moved]["mean"]] == pytest.approx(gains)
    found = found[~is_moved].set_index(["row", "photos"])
    gain = (recall[fair.BETAS]["vMF at 0.75"] - recall[fair.BETAS]["CLIP"]).mean()
    assert found.loc[("vMF, beta 0.75", 600), "mean"] == pytest.approx(gain)
    few = rows[rows["condition"] == fair.FEW].set_index(["method", "seed"])
    few = few["recall on Flickr8k"]
    gain = (few["CIBR MINE"] - few["CLIP"]).mean()
    assert found.loc[("MINE", 600), "mean"] == pytest.approx(gain)
    noise = recall[fair.FEW]
    gain = (noise["noise only"] - noise["CLIP"]).mean()
    assert found.loc[("noise alone, not tuned", 600), "mean"] == pytest.approx(gain)
    own = closed[(closed["condition"] == "3,000 photos") & (closed["seed"] > 100)]
    own = own.set_index("method").filter(regex="flickr8k/.*@")
    gain = 100 * (own.loc["heads + power"].mean() - own.loc["heads"].mean()).mean()
    assert found.loc[("heads + CCA", 3000), "mean"] == pytest.approx(gain)
    assert (found["low"] < found["mean"]).all() and set(found["n"]) == {8, 16}
