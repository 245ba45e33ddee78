"""The trainer has the weights and the history of the loop that it replaces, bit for bit."""

import warnings
from functools import partial

import pandas as pd
import pytest
from helpers import same
from small_runs import HELD_OUT, PAIRS, settings, small_model

from cibr import fit
from cibr.losses import RegularisedCCA
from cibr.models import features
from cibr.models.features import prepare
from cibr_book.experiments.training import (
    Averaging,
    StudyTrainer,
    WeightAverage,
    grouped_rows,
)

TINY = {
    "clip": dict(beta=0.0),
    "vmf": dict(penalty_options={"kappa_b": 20.0}),
    "vmf, sampled": dict(sample=True, kappa_e=50.0, micro_batch_size=3),
    "mine": dict(penalty="mine", sample=True, micro_batch_size=3),
    "crossfit": dict(penalty="crossfit", validate_every=2, epochs=3),
    "crops": dict(crop_scale=0.8),
}
CCA = dict(cca_start=True, cca_ridges=(2.0, 1.0))
FROZEN = {
    "cca start": CCA | dict(beta=0.0),
    "closed form": CCA | dict(learning_rate=1e-9, epochs=1, beta=0.0),
    "anchor": CCA | dict(penalty="anchor", weight_decay=0.3),
    "self-training": CCA | dict(penalty="anchor"),
    "averaged": dict(beta=0.0),
    "averaged, interpolated": dict(beta=0.0),
    "two captions + noise": dict(beta=0.0),
    "rafa, hycd": dict(penalty="rafa", contrastive="hycd", micro_batch_size=3),
    "siglip": dict(contrastive="siglip"),
}


def assert_equal(models, histories):
    assert same(*models)
    one, other = (history.drop(columns="seconds") for history in histories)
    pd.testing.assert_frame_equal(one, other, check_exact=True, check_dtype=False)


def new(model, config, additions, pairs=PAIRS):
    trainer = StudyTrainer(model, config, pairs, HELD_OUT, **additions)
    trainer.train()
    return trainer.history


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("case", TINY)
def test_tiny(tmp_path, case):
    old = settings(tmp_path / "old", **TINY[case])
    models = [small_model(old), small_model(old)]
    histories = [fit(models[0], PAIRS, HELD_OUT, old)]
    histories.append(new(models[1], settings(tmp_path / "new", **TINY[case]), {}))
    assert_equal(models, histories)


@pytest.mark.parametrize("case", FROZEN)
def test_frozen(build, tmp_path, monkeypatch, case):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    options = dict(model="frozen", seed=3) | FROZEN[case]
    noise = {"feature_noise": 0.3} if "noise" in case else {}
    old = settings(tmp_path / "old", **options, **noise)
    models = [build("frozen", dropout=0.3), build("frozen", dropout=0.3)]
    before, after = {}, dict(noise)
    if case == "self-training":
        inputs = prepare(models[0], HELD_OUT)
        images = inputs.images[HELD_OUT.text_to_image()]
        cca = RegularisedCCA.fit(images, inputs.texts[0], models[0].dim, 2.0, 1.0)
        before, after = {"cca": cca}, {"statistic": cca}
    if case.startswith("averaged"):
        average = dict(decay=0.9, interpolation=0.3 if "inter" in case else 0.0)
        before = {"average": partial(WeightAverage, **average)}
        after = {"callbacks": [Averaging(**average)]}
    if "captions" in case:
        before = {"order": partial(grouped_rows, PAIRS, 2, 1.0, 3)}
        after |= {"group_size": 2}
    with warnings.catch_warnings(action="ignore"):
        histories = [fit(models[0], PAIRS, HELD_OUT, old, **before)]
        histories.append(new(models[1], settings(tmp_path / "new", **options), after))
    assert_equal(models, histories)
