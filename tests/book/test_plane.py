"""The information plane: runs trained together are those of `CIBRLoss`, and the table is whole."""

import dataclasses

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from cibr_book import plane, worlds

WORLD = worlds.discrete_world()


@pytest.fixture(scope="module")
def table():
    return pd.read_csv(plane.TABLE)


def test_runs_trained_together_are_those_of_the_loss_one_by_one():
    chosen = [c for c in plane.conditions() if not (c.objective or {}).get("sample")]
    chosen = [c for c in chosen if c.method != "CIBR MINE" and c.beta in (0.0, 1.0)]
    chosen = [dataclasses.replace(c, n_steps=4) for c in chosen]
    assert {c.method for c in chosen} == {"CLIP", "CIBR vMF", "CIBR crossfit"}
    together = plane.train_together(WORLD, chosen, seeds=(3, 5))
    for condition, by_seed in zip(chosen, together, strict=True):
        alone, _ = worlds.train_discrete(
            WORLD,
            plane.DIM,
            condition.temperature,
            plane.BATCH_SIZE,
            seed=5,
            objective=condition.objective,
            n_steps=4,
        )
        torch.testing.assert_close(by_seed[1], alone, atol=1e-6, rtol=0)


def test_noise_changes_the_loss_of_its_conditions_alone_and_by_what_samples_cost():
    clip, noise = (plane.Condition("", 0.5, 0.0, 1, o) for o in (None, {"sample": True}))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 400, 64, plane.DIM, generator=generator, dtype=torch.float64)
    image, text = F.normalize(drawn, dim=3).expand(2, 2, -1, -1, -1).unbind(1)
    losses = plane._losses([clip, noise], image, text, generator)
    assert torch.equal(losses[0], plane._losses([clip], image[:1], text[:1], generator)[0])
    # A sample's cosine is on average A^2 times that of the means.
    assert (losses[0] - losses[1]).abs().mean() > 0.01


def test_every_method_of_the_table_has_all_its_conditions_at_every_seed_and_both_noises(table):
    runs = table[table["method"] != "optimum"]
    counts = runs.groupby(["method", "temperature", "beta", "n_steps", "kappa"]).size()
    methods = set(runs["method"])
    expected = {
        (c.method, c.temperature, c.beta, c.n_steps, kappa)
        for c in plane.conditions()
        for kappa in plane.KAPPAS
        if c.method in methods
    }
    assert set(counts.index) == expected and set(counts) == {len(plane.SEEDS)}
    assert methods >= {"CLIP", "noise only", "CIBR vMF", "CIBR vMF, sampled", "CIBR crossfit"}


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
    world = worlds.discrete_world(n_image=1, n_text=1)
    generator = torch.Generator().manual_seed(9)
    start = F.normalize(torch.randn(4, plane.DIM, generator=generator).double(), dim=1)
    row = optima[optima["beta"] == 1.0].iloc[0]
    images = plane.ascend(world, start, 1.0, kappa, n_steps=60)
    found = plane.objective(world, images, 1.0, kappa).item()
    assert found < row["shared"] - row["residual"] + 0.005


def test_embeddings_of_the_shared_factor_alone_are_no_worse_at_any_noise():
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(4, 3, 4, generator=generator).double(), dim=2)
    for beta in (0.0, 1.0):
        spread = plane.objective(WORLD, images.flatten(0, 1), beta, 20.0)
        chosen = [images[:, [v]].expand(4, 3, 4).flatten(0, 1) for v in range(3)]
        alone = torch.stack([plane.objective(WORLD, x, beta, 20.0) for x in chosen])
        assert alone.mean() > spread + 0.01
