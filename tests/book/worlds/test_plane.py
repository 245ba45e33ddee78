"""The information plane: no run beats the optimum."""

import pandas as pd
import pytest

from cibr_book.worlds.plane import TABLE, plane_rows


@pytest.mark.parametrize("kappa", [20.0, 100.0])
def test_no_run_of_the_table_beats_its_optimum(kappa):
    table = pd.read_csv(TABLE)
    at = table[table["kappa"] == kappa]
    optima, runs = (at[(at["method"] == "optimum") == is_it] for is_it in (True, False))
    assert len(optima) == 8 and "CIBR MINE" in set(runs["method"])
    for row in optima.itertuples():
        value = row.shared - row.beta * row.residual
        others = runs["shared"] - row.beta * runs["residual"]
        # Sampling z leaves an error of some thousandths in each term.
        assert value > others.max() - 0.01 * (1 + row.beta)


def test_betas_of_the_page_weigh_one_minus_cosine_by_the_temperature():
    before, rows = pd.read_csv(TABLE), plane_rows()
    vmf = rows["method"].isin(["CIBR vMF", "CIBR vMF, sampled", "CIBR crossfit"])
    # kappa_b 10, A_8(20) = 0.84 and a temperature of 0.05
    expected = 10 * 0.84 * 0.05 * before.loc[vmf, "beta"]
    assert rows.loc[vmf, "beta"].to_numpy() == pytest.approx(expected.to_numpy(), rel=0.04)
    pd.testing.assert_frame_equal(rows[~vmf], before[~vmf])
