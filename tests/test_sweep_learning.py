"""Histories become one curve an arm, with residuals at one concentration."""

import pytest
from fake_ablation import add_run, settings_of, write_history

from cibr.information import vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats
from cibr.sweep import read_arms, training_plane


def residual(cosine, kappa, dim=512):
    return vmf_residual_nats(cosine, kappa, vmf_fit_kappa(vmf_mean_cosine(kappa, dim) * cosine, dim), dim).item()


@pytest.fixture
def made(tmp_path):
    def add(settings, **options):
        return add_run(add.table, add.runs, settings, **options)

    add.table, add.runs = tmp_path / "ablation.csv", tmp_path / "runs"
    return add


def plane(made, say=print):
    return training_plane(read_arms(made.table), made.runs, say)


def test_curves_are_means_over_seeds_of_each_arm_and_beta(made):
    for seed, skill in enumerate((0.2, 0.4)):
        made(settings_of("CLIP", seed), skill=skill)
    made(settings_of("CIBR", beta=0.1), skill=0.8)
    rows = plane(made)
    assert rows["n_seeds"].tolist() == [2] * 4 + [1] * 4 and rows["epoch"].tolist() == [1, 2, 3, 4] * 2
    assert rows["recall@1"].tolist() == pytest.approx([0.075, 0.15, 0.225, 0.3, 0.2, 0.4, 0.6, 0.8])


def test_residuals_are_told_at_one_concentration_whatever_a_run_trains_with(made):
    for seed, kappa in enumerate((1024.0, 8192.0)):
        name = made(settings_of("noise", seed, estimator="noise", kappa_e=kappa))
        write_history(made.runs / name, 0.5, residual=residual(0.3, kappa))
    (mean,) = plane(made)["residual_nats"].unique()
    assert mean == pytest.approx(residual(0.3, 1024.0), rel=1e-5)


@pytest.mark.parametrize("estimator", ["gaussian", "mine", "club", "siblings", "prototype", "crossfit"])
def test_what_is_no_bound_of_the_pairs_stays_empty(made, estimator):
    made(settings_of("CIBR", estimator=estimator))
    assert plane(made)["residual_nats"].isna().all()


def test_long_runs_are_thinned_to_their_last_epoch_and_a_lost_history_is_said(made):
    name = made(settings_of("CLIP"))
    write_history(made.runs / name, 0.5, n_epochs=80)
    (made.runs / made(settings_of("CLIP", 1)) / "history.csv").unlink()
    said = []
    rows = plane(made, said.append)
    assert len(rows) == 15 and rows["epoch"].iloc[[0, -1]].tolist() == [1, 80]
    assert len(said) == 1 and said[0].startswith("flickr8k, CLIP, seed 1: no history")


def test_runs_without_a_bound_have_an_empty_one(made):
    name = made(settings_of("SigLIP", estimator="siglip"))
    file = made.runs / name / "history.csv"
    file.write_text(file.read_text().replace("mi_lower_bound_nats", "other"))
    assert plane(made)["mi_lower_bound_nats"].isna().all()
