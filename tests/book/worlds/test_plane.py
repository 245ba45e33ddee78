"""The information plane: stored points come out again, and no run beats the optimum."""

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from cibr_book.worlds import plane
from cibr_book.worlds.discrete import discrete_world

SETTINGS = ["method", "temperature", "beta", "n_steps", "seed", "kappa"]
VALUES = ["shared", "residual", "nuisance"]


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(plane.TABLE)


def test_stored_points_come_out_again(table):
    runs = [("CLIP", 0.02, 0.0), ("CIBR vMF", 0.05, 3.0), ("CIBR crossfit", 0.05, 1.0)]
    runs.append(("CIBR vMF, sampled", 0.05, 3.0))
    both = plane.plane_rows(runs, seeds=(2, 5)).merge(table, on=SETTINGS)
    assert len(both) == 16
    # Without noise the runs are the same; samples are other draws here than in the table.
    drawn = both["method"] == "CIBR vMF, sampled"
    for name in VALUES:
        gap = (both[f"{name}_x"] - both[f"{name}_y"]).abs()
        assert gap[~drawn].max() < 2e-4 and gap[drawn].max() < 0.06


def test_a_stored_optimum_is_found_again(table):
    stored = table[(table["method"] == "optimum") & (table["kappa"] == 20)].set_index("beta")
    for row in plane.optimum_rows(20.0, (1.0,), n_starts=1).itertuples():
        assert row.shared == pytest.approx(stored.loc[row.beta, "shared"], abs=0.01)
        assert row.residual == pytest.approx(stored.loc[row.beta, "residual"], abs=0.01)


@pytest.mark.parametrize("kappa", plane.KAPPAS)
def test_no_run_and_no_other_start_beats_the_optimum(table, kappa):
    at = table[table["kappa"] == kappa]
    optima, runs = (at[(at["method"] == "optimum") == is_it] for is_it in (True, False))
    assert list(optima["beta"]) == list(plane.OPTIMUM_BETAS)
    for row in optima.itertuples():
        value = row.shared - row.beta * row.residual
        others = runs["shared"] - row.beta * runs["residual"]
        # Sampling z leaves an error of some thousandths in each term.
        assert value > others.max() - 0.01 * (1 + row.beta)
    world = discrete_world(n_image=1, n_text=1)
    generator = torch.Generator().manual_seed(9)
    start = F.normalize(torch.randn(4, 8, generator=generator).double(), dim=1)
    row = optima[optima["beta"] == 1.0].iloc[0]
    images = plane.ascend(world, start, 1.0, kappa, n_steps=60)
    before, found = (plane.objective(world, x, 1.0, kappa).item() for x in (start, images))
    assert before - 1e-6 < found < row["shared"] - row["residual"] + 0.005


def test_embeddings_of_the_shared_factor_alone_are_no_worse_at_any_noise():
    world = discrete_world()
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(4, 3, 4, generator=generator).double(), dim=2)
    for beta in (0.0, 1.0):
        spread = plane.objective(world, images.flatten(0, 1), beta, 20.0)
        chosen = [images[:, [v]].expand(4, 3, 4).flatten(0, 1) for v in range(3)]
        alone = torch.stack([plane.objective(world, x, beta, 20.0) for x in chosen])
        assert alone.mean() > spread + 0.01


def test_the_table_that_the_module_makes_has_the_stored_conditions(table, monkeypatch):
    def rows(runs, seeds, n_steps=300):
        made = [
            (*run, n_steps, seed, kappa) for run in runs for seed in seeds for kappa in plane.KAPPAS
        ]
        return pd.DataFrame(made, columns=SETTINGS)

    monkeypatch.setattr(plane, "plane_rows", rows)
    monkeypatch.setattr(plane, "optimum_rows", lambda kappa: pd.DataFrame())
    runs = table[~table["method"].isin(["optimum", "CIBR MINE"])]
    made = set(plane.make_plane().itertuples(index=False, name=None))
    assert made == set(runs[SETTINGS].itertuples(index=False, name=None)) and len(made) == len(runs)
