"""The information plane: runs trained together are those of `CIBRLoss`, and the table is whole."""

import dataclasses

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from cibr.losses.vmf import sample_vmf, vmf_mean_cosine
from cibr_book.worlds import exact as worlds
from cibr_book.worlds import plane

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


def test_noise_replaces_both_means_by_samples_in_its_conditions_alone():
    objectives = (None, {"sample": True}, {"sample": True})
    betas = (0.0, 0.0, 3.0)
    chosen = [plane.Condition("", 0.5, b, 1, o) for b, o in zip(betas, objectives, strict=True)]
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2, 4, 64, plane.DIM, generator=generator, dtype=torch.float64)
    means = F.normalize(means, dim=3).expand(3, 2, -1, -1, -1).unbind(1)
    losses = plane._losses(chosen, *means, torch.Generator().manual_seed(1))
    clip = plane._losses(chosen[:1], *(side[:1] for side in means), generator)
    assert torch.equal(losses[0], clip[0])
    again = torch.Generator().manual_seed(1)
    drawn = [sample_vmf(side[1:].flatten(0, 2), 20.0, again).view_as(side[1:]) for side in means]
    expected = plane._losses(2 * chosen[:1], *drawn, generator)
    cosines = (means[0][2] * means[1][2]).sum(2).mean(1)  # the penalty is that of the means
    expected[1] += 3 * 10 * vmf_mean_cosine(20.0, plane.DIM) * (1 - cosines)
    torch.testing.assert_close(losses[1:], expected)


@pytest.mark.parametrize("penalty", ["vmf", "mine"])
def test_rows_hold_the_information_of_each_run_at_each_noise(penalty):
    method = "CIBR MINE" if penalty == "mine" else "CIBR vMF"
    objective = {"penalty": penalty, "beta": 1.0, "kappa_e": plane.KAPPA_E}
    rows = plane.plane_rows([plane.Condition(method, 0.1, 1.0, 2, objective, seeds=(4,))])
    options = dict(objective=objective, seed=4, n_steps=2)
    images, _ = worlds.train_discrete(WORLD, plane.DIM, 0.1, plane.BATCH_SIZE, **options)
    assert [row["kappa"] for row in rows] == list(plane.KAPPAS)
    for row in rows:
        nats = worlds.embedding_informations(WORLD, images, row["kappa"], seed=4)
        assert row["shared"] == pytest.approx(nats["sufficiency_nats"], abs=1e-4)
        assert row["residual"] == pytest.approx(nats["residual_image_nats"], abs=1e-4)
        assert row["nuisance"] == pytest.approx(nats["nuisance_image_nats"], abs=1e-4)
        settings = [row[n] for n in ("method", "temperature", "beta", "n_steps", "seed")]
        assert settings == [method, 0.1, 1.0, 2, 4]


def test_a_stored_optimum_is_found_again(table, monkeypatch):
    monkeypatch.setattr(plane, "_N_STARTS", 1)
    stored = table[(table["method"] == "optimum") & (table["kappa"] == 20)].set_index("beta")
    for row in plane.optimum_rows(20.0, (1.0, 3.5)):
        for name in ("shared", "residual"):
            assert row[name] == pytest.approx(stored.loc[row["beta"], name], abs=0.01)


def test_main_makes_what_the_table_lacks_and_keeps_the_order_of_the_conditions(
    tmp_path, monkeypatch
):
    few = [
        plane.Condition("CLIP"),
        *(plane.Condition("CIBR MINE", beta=b) for b in (0.1, 0.3, 1.0)),
    ]
    monkeypatch.setattr(plane, "TABLE", tmp_path / "plane.csv")
    monkeypatch.setattr(plane, "conditions", lambda: iter(few))
    made = []

    def rows_of(chosen):
        made.append([c.beta for c in chosen])
        about = [{n: getattr(c, n) for n in plane._SETTINGS} for c in chosen]
        return [settings | {"seed": 0, "kappa": 20.0} for settings in about]

    monkeypatch.setattr(plane, "plane_rows", rows_of)
    monkeypatch.setattr(
        plane, "optimum_rows", lambda kappa: [{"method": "optimum", "beta": 0.0, "kappa": kappa}]
    )
    plane.main()
    table = pd.read_csv(plane.TABLE)
    assert made == [[0.0], [0.1], [0.3], [1.0]]
    table[table["beta"] != 0.3].to_csv(plane.TABLE, index=False)
    plane.main()
    assert made[4:] == [[0.3]]
    pd.testing.assert_frame_equal(pd.read_csv(plane.TABLE), table)


def test_every_method_of_the_table_has_all_its_conditions_at_every_seed_and_both_noises(table):
    runs = table[table["method"] != "optimum"]
    names = ["method", "temperature", "beta", "n_steps", "seed", "kappa"]
    expected = {
        (c.method, c.temperature, c.beta, c.n_steps, seed, kappa)
        for c in plane.conditions()
        for seed in c.seeds
        for kappa in plane.KAPPAS
    }
    assert set(runs[names].itertuples(index=False, name=None)) == expected
    assert len(runs) == len(expected)


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
    before, found = (plane.objective(world, x, 1.0, kappa).item() for x in (start, images))
    assert before - 1e-6 < found < row["shared"] - row["residual"] + 0.005


def test_embeddings_of_the_shared_factor_alone_are_no_worse_at_any_noise():
    generator = torch.Generator().manual_seed(1)
    images = F.normalize(torch.randn(4, 3, 4, generator=generator).double(), dim=2)
    for beta in (0.0, 1.0):
        spread = plane.objective(WORLD, images.flatten(0, 1), beta, 20.0)
        chosen = [images[:, [v]].expand(4, 3, 4).flatten(0, 1) for v in range(3)]
        alone = torch.stack([plane.objective(WORLD, x, beta, 20.0) for x in chosen])
        assert alone.mean() > spread + 0.01
