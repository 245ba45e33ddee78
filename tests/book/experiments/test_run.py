"""One run of the study: its measures are right, and are those of the committed rows."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from helpers import noise_pairs
from torch.nn.functional import normalize

from cibr.data import load_pairs
from cibr.models import DualEncoder
from cibr_book.experiments.run import describe_embeddings, leakage, residual_nats, train_and_measure
from cibr_book.experiments.tables import read_table

TINY = {"dataset": "glyphs", "model": "tiny", "penalty": "vmf", "sample": True, "kappa_e": 8192.0}
TINY |= {"beta": 0.1, "epochs": 1, "batch_size": 64, "temperature": 0.1, "seed": 1}


@pytest.mark.slow
def test_a_run_of_glyphs_has_the_columns_of_the_committed_rows(tmp_path):
    settings = TINY | {"corruption": {"fraction": 0.02}, "suites": ["glyphs"]}
    metrics = train_and_measure(settings, tmp_path / "run")
    committed = read_table("confirmation.csv")
    common = committed.filter(regex="^(?:train|validation|last|steps|training)_").columns
    # By pair, and of the geometry that the code of the rows' commit measured.
    other = r"_to_\w+_recall@|_alignment|_uniformity|_modality_gap|_linear_cka|_mutual_knn"
    rest = common[~common.str.contains(other)]
    assert {*rest} <= {*metrics} and len(rest) > 15
    assert {"glyphs/mean of 7/accuracy@1", "leakage_image_typeface"} <= {*metrics}
    assert metrics["validation_recall@10"] < 0.2
    bounds = [metrics[f"{split}_mi_lower_bound_nats"] for split in ("train", "validation")]
    assert metrics["train_test_gap_nats"] == bounds[0] - bounds[1]


def test_a_trial_has_the_recalls_of_its_last_epoch_and_the_first_step_that_reached_a_level(
    tmp_path, monkeypatch
):
    names = [
        f"{side}_recall@{k}" for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)
    ]
    columns = ["step", "seconds", "clip_loss", "penalty_excess", "temperature", *names]
    columns += ["residual_image_nats", "residual_text_nats"]
    history = pd.DataFrame(0.0, range(3), columns).assign(step=[5, 10, 15], clip_loss=[3, 2, 1])
    history[names] = [[0.01] * 6, [0.05, 0.1, 0.1, 0.05, 0.1, 0.2], [0.1, 0.2, 0.1, 0.3, 0.4, 0.3]]
    finished = SimpleNamespace(train=lambda: None, history=history)
    make = lambda *given, **named: finished  # noqa: E731
    monkeypatch.setattr("cibr_book.experiments.run.StudyTrainer", make)
    metrics = train_and_measure(TINY | {"corruption": {"fraction": 0.02}}, tmp_path / "run")
    assert [metrics[f"validation_recall@{k}"] for k in (1, 5, 10)] == pytest.approx([0.2, 0.3, 0.2])
    assert metrics["validation_text_to_image_recall@1"] == 0.3 and metrics["last_clip_loss"] == 1
    assert metrics["steps_to_recall@10_0.1"] == 10 and metrics["steps"] == 15
    assert math.isnan(metrics["steps_to_recall@10_0.3"])


def test_the_residual_is_the_committed_function_of_the_cosine():
    rows = read_table("confirmation.csv").groupby("condition").head(1)
    cosines = 1 - rows["validation_alignment"] / 2
    nats = [residual_nats(cosine, dim=512) for cosine in cosines]
    assert nats == pytest.approx(rows["validation_residual_nats"].tolist(), rel=1e-4)


@pytest.fixture
def embeds(monkeypatch):
    """Makes models embed each image as its row of a table, and texts too, or else at random."""

    def embed(images, texts=None):
        texts = noise(*images.shape, seed=1) if texts is None else texts
        unit = normalize(images, dim=1), normalize(texts, dim=1)
        monkeypatch.setattr("cibr_book.experiments.run._embed", lambda model, pairs: unit)
        return DualEncoder.tiny(["a"], dim=2, width=2)

    return embed


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_leakage_is_the_share_of_a_factor_that_the_embedding_holds(embeds, monkeypatch):
    pairs = load_pairs("glyphs", "train").subset(range(0, 6000, 10))
    monkeypatch.setattr("cibr_book.experiments.run._sample", lambda pairs, n: pairs)
    dark = torch.tensor((pairs.factors["ink"] > pairs.factors["paper"]).to_numpy()).float()
    shares = leakage(embeds(torch.cat([8 * dark[:, None] - 4, noise(600, 3)], dim=1)), pairs)
    assert shares["leakage_image_polarity"] > 0.9 and abs(shares["leakage_image_typeface"]) < 0.1
    assert {name.split("_")[0] for name in shares} == {"leakage", "shared"}


def test_the_bound_is_infonce_at_a_temperature_of_7_percent(embeds):
    measures = describe_embeddings(embeds(torch.eye(16), torch.eye(16)), noise_pairs(16))
    loss = math.log1p(15 * math.exp(-1 / 0.07))
    assert measures["mi_lower_bound_nats"] == pytest.approx(math.log(16) - loss)
    measures = describe_embeddings(embeds(noise(56, 16)), noise_pairs(56))
    assert measures["mi_lower_bound_nats"] < 0


def test_photos_have_factors_of_one_modality_and_of_both(embeds, monkeypatch):
    has_man = torch.arange(60) % 4 < 2
    people = ["man" if man else "cat" for man in has_man]
    captions = [[f"a {who} {'so ' * (i % 7)}big"] for i, who in enumerate(people)]
    monkeypatch.setattr(
        "cibr_book.experiments.run._sample", lambda pairs, n: replace(pairs, captions=captions)
    )
    images = torch.cat([8.0 * has_man[:, None] - 4, noise(60, 3)], dim=1)
    shares = leakage(embeds(images), noise_pairs(60))
    names = ["leakage_image_brightness", "leakage_image_colourfulness", "leakage_text_length"]
    assert sorted(shares) == [*names, "shared_image_people", "shared_text_people"]
    assert shares["shared_image_people"] > 0.8
    assert shares["leakage_image_brightness"] < 0.4 > shares["shared_text_people"]
    assert all(math.isfinite(share) for share in shares.values())
