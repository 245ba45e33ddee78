"""What a run is measured by: geometry as `cibr.metrics` has it, and probes that find what was planted alone."""

import numpy as np
import pandas
import pytest
import torch
from conftest import noise_pairs
from torch.nn import functional as F

from cibr.metrics import alignment, modality_gap, recall_at_k
from cibr.sweep import diagnostics

N = 400


@pytest.fixture
def pairs():
    """Pairs whose factors are drawn independently of each other."""
    rng = np.random.default_rng(0)
    pairs = noise_pairs(N, n_captions=2)
    pairs.factors = pandas.DataFrame(
        {
            **{
                name: rng.integers(0, 2, N)
                for name in ("typeface", "weight", "slant", "size", "x", "y", "template")
            },
            "category": rng.choice(["Lu", "Ll"], N),
            "ink": rng.choice([0, 255], N),
            "paper": 128,
        }
    )
    return pairs


@pytest.fixture
def planted(monkeypatch):
    """Lets embeddings stand for a model: a function of the pairs that are shown to it."""

    def plant(embed):
        monkeypatch.setattr(diagnostics, "_embedded", lambda model, pairs: embed(pairs))

    return plant


def noise(n, seed):
    return F.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_a_probe_reads_the_factor_that_an_embedding_holds_and_no_other(build, pairs, planted):
    def embed(shown):
        held = torch.tensor((shown.factors["ink"] > shown.factors["paper"]).to_numpy()).float()
        images = torch.cat([3 * held[:, None] - 1.5, noise(len(shown), 0)], dim=1)
        return F.normalize(images, dim=1), F.normalize(
            torch.cat([0 * held[:, None], noise(len(shown), 1)], 1), dim=1
        )

    planted(embed)
    found = diagnostics.leakage(build("tiny"), pairs)
    nuisance = {f"leakage_image_{name}" for name in ("typeface", "weight", "slant", "size", "x", "y", "polarity")}
    assert set(found) == nuisance | {"leakage_text_template", "shared_image_category", "shared_text_category"}
    assert found.pop("leakage_image_polarity") > 0.9
    assert max(found.values()) < 0.1  # of noise a probe guesses at best, and at worst errs


@pytest.mark.parametrize(("strength", "low", "high"), [(1.5, 0.9, 1.01), (0.0, -0.1, 0.1)])
def test_a_look_and_a_wording_are_read_from_embeddings_that_hold_them(build, planted, strength, low, high):
    def holding(changed):
        noises = noise(len(changed) // 2, 0).repeat(2, 1)  # of one picture, whichever way it is shown or told
        return F.normalize(torch.cat([strength * (2.0 * torch.tensor(changed)[:, None] - 1), noises], 1), dim=1)

    def embed(shown):
        turned = [key.endswith("/negative") for key in shown.keys]
        return holding(turned), holding([text == "dog" for text in shown.texts()])

    planted(embed)
    pairs = noise_pairs(N)
    pairs.captions = [["this is a dog"]] * N
    read = diagnostics.look_leakage(build("tiny"), pairs, "negative")
    read |= diagnostics.wording_leakage(build("tiny"), pairs, "keywords")
    assert list(read) == ["leakage_image_negative", "leakage_text_keywords"]
    assert all(low < share < high for share in read.values())


@pytest.mark.parametrize(("bias", "low", "high"), [(0.0, 1.0, 1.0), (10.0, 0.4, 0.6)])
def test_a_bias_towards_a_look_costs_retrieval_where_looks_are_mixed(build, planted, bias, low, high):
    def embed(shown):
        content, every_other = noise(N, 0), torch.arange(N) % 2
        turned = torch.tensor([key.endswith("/negative") for key in shown.keys])
        sides = [bias * (2.0 * side[:, None] - 1) for side in (turned, every_other)]
        return tuple(F.normalize(torch.cat([side, content], 1), dim=1) for side in sides)

    planted(embed)
    found = diagnostics.mixed_looks_recall(build("tiny"), noise_pairs(N), "negative")
    assert list(found) == [f"mixed_looks_{d}_recall@1" for d in ("image_to_text", "text_to_image")]
    assert all(low <= recall <= high for recall in found.values())  # half of the texts ask for the other look


def test_geometry_is_that_of_the_pictures_and_their_first_texts(build, planted):
    images, texts = noise(N, 0), noise(N, 1)
    shown = []

    def embed(pairs):
        shown.append(pairs)
        return images, texts

    planted(embed)
    found = diagnostics.describe_embeddings(build("tiny"), noise_pairs(N, n_captions=3))
    assert all(len(captions) == 1 for captions in shown[0].captions)
    assert found["alignment"] == alignment(images, texts)
    assert found["modality_gap"] == modality_gap(images, texts)
    recalls = recall_at_k(images, texts, torch.arange(N), (1,))
    assert found["one_text_recall@1"] == pytest.approx(sum(recalls.values()) / 2)
    assert found["mi_lower_bound_nats"] < np.log(N)
