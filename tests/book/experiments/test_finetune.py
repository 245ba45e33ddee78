"""The study of fine-tuning: its controls have the gradients that are claimed, and its measures are
those of the library.
"""

import os

import jaxtyping
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from cibr.data import load_pairs
from cibr.evaluate import evaluate_pairs
from cibr.losses import PENALTIES, CIBRLoss
from cibr.losses.clip import plain_clip_loss
from cibr.models import DualEncoder
from cibr.models.inputs import prepare
from cibr_book.experiments import finetune, photo_sets, stages
from cibr_book.experiments.arms import AnchoredEncoder, pull_to_start
from cibr_book.experiments.hits import Hits

SCALE = 12.0
SHORT = dict(photos=64, epochs=2, learning_rate=1e-4, temperature=0.07, batch_size=32, seed=3)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    return [F.normalize(side, dim=1).requires_grad_() for side in vectors]


def value_and_gradients(loss, pair):
    return loss, torch.autograd.grad(loss, pair)


def loss_of(pair, beta, penalty, **options):
    loss = CIBRLoss(beta, penalty, **options)(*pair, SCALE, output_dict=False)
    return value_and_gradients(loss, pair)


def test_the_parts_sum_to_the_alignment_term(pair):
    scale = torch.tensor(SCALE, dtype=torch.float64)
    of_all = SCALE * (1 - (pair[0] @ pair[1].T).mean())
    torch.testing.assert_close(loss_of(pair, 1.0, "gap")[0] - loss_of(pair, 0, "gap")[0], of_all)
    clip = plain_clip_loss(*pair, scale)
    whole = loss_of(pair, 0.3, "vmf")
    parts = [loss_of(pair, 0.3, name) for name in ("gap", "contrast")]
    torch.testing.assert_close(parts[0][0] + parts[1][0] - clip, whole[0])
    of_clip = value_and_gradients(clip, pair)[1]
    for i in (0, 1):
        summed = parts[0][1][i] + parts[1][1][i] - of_clip[i]
        torch.testing.assert_close(summed, whole[1][i])


def test_contrast_below_zero_is_label_smoothing(pair):
    logits = SCALE * pair[0] @ pair[1].T
    labels = torch.arange(6)
    both = [F.cross_entropy(x, labels, label_smoothing=0.1) for x in (logits, logits.T)]
    value, gradients = value_and_gradients((both[0] + both[1]) / 2, pair)
    ours = loss_of(pair, 0.1, "contrast", sign=-1)
    torch.testing.assert_close(ours[0], value)
    torch.testing.assert_close(ours[1], gradients)


def test_contrast_is_the_loss_at_a_very_high_temperature(pair):
    temperature = 1e4
    soft = plain_clip_loss(*pair, torch.tensor(1 / temperature, dtype=torch.float64))
    per_scale = temperature * (soft - np.log(6))
    ours = (loss_of(pair, 1.0, "contrast")[0] - loss_of(pair, 0, "contrast")[0]) / SCALE
    torch.testing.assert_close(per_scale, ours, rtol=0, atol=1e-4)


def test_an_anchor_pulls_to_the_embeddings_of_the_start():
    pairs = load_pairs("photos", "validation").subset(range(8))
    model = AnchoredEncoder(DualEncoder.names()).eval()
    inputs = prepare(model, pairs)
    at_start = model.encode_images(inputs.images).features.detach()
    with torch.no_grad():
        for weights in model.head.parameters():
            weights.add_(0.01 * torch.randn_like(weights))
    image = model.encode_images(inputs.images)
    text = model.encode_texts(inputs.texts[0][::5])
    torch.testing.assert_close(image.pooled, at_start)
    assert not torch.allclose(image.features, at_start, atol=1e-3)
    assert not image.pooled.requires_grad
    assert len([*model.parameters()]) == len([*DualEncoder.names().parameters()])
    pooled = dict(image_pooled=image.pooled, text_pooled=text.pooled)
    loss_fn = CIBRLoss(2.0, "anchor")
    terms = loss_fn(image.features, text.features, SCALE, **pooled)
    distances = [1 - (x.features * x.pooled).sum(1).mean() for x in (image, text)]
    expected = 2.0 * SCALE * sum(distances) / 2
    torch.testing.assert_close(terms["penalty_loss"], expected)


def test_the_pull_to_the_start_is_a_share_of_the_way():
    weights = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([weights], lr=0.1)
    pull_to_start(optimizer, decay=2.5)
    weights.grad = torch.tensor([4.0, 0.0])
    optimizer.step()  # to 0.6, then a quarter of the way back
    torch.testing.assert_close(weights.detach(), torch.tensor([0.7, -2.0]))


def test_the_controls_have_names():
    assert {"gap", "contrast", "anchor"} <= PENALTIES.keys()


def test_measures_are_those_of_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(finetune._SUITES, "claims", ["coco-mini", "cifar10"])
    settings = SHORT | dict(suites="claims", seed=finetune.SHOWN_SEED, penalty="gap", beta=0.1)
    run = tmp_path / "run"
    found = finetune.train_and_measure(settings, run)
    model = finetune._trained(finetune._Frozen(), settings)
    coco = load_pairs("photos-coco", "test")
    for pairs, name in ((coco, "coco-mini"), (load_pairs("photos-cifar10", "test"), "cifar10")):
        for (_, _, metric), values in evaluate_pairs(model, pairs, "").scores.items():
            if metric != "mean_per_class_accuracy":
                assert found[f"{name}/{metric}"] == pytest.approx(values.mean(), abs=1e-9)
    assert 0 < found["coco-mini/modality_gap"] < 1

    monkeypatch.setattr(finetune, "HITS", tmp_path / "hits.npz")
    monkeypatch.setattr(finetune, "FIRST", tmp_path / "first.npz")
    finetune.collect(tmp_path)
    finetune.collect(tmp_path)  # again, which changes nothing
    hits = Hits.load(finetune.HITS).of_run("coco-mini", "run")
    for metric, values in hits.items():
        assert values.mean() == pytest.approx(found[f"coco-mini/{metric}"]), metric
    labels = load_pairs("photos-cifar10", "test").labels
    hits = Hits.load(finetune.HITS)
    assert np.array_equal(hits.owners["cifar10"], labels)
    assert np.array_equal(hits.owners["coco-mini"], coco.text_to_image())
    right = hits.of_run("cifar10", "run")["accuracy@1"]
    assert right.mean() == pytest.approx(found["cifar10/accuracy@1"])
    first = finetune._load(finetune.FIRST)["run/coco-mini/search"]
    is_found = (first == coco.text_to_image().numpy()[:, None]).any(1)
    assert is_found.mean() == pytest.approx(found["coco-mini/text_to_image_recall@5"], abs=1e-3)


def test_codes_are_within_half_a_step():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    codes, step = photo_sets.coded(features)
    assert codes.dtype == torch.int8 and photo_sets.coded(features.abs())[0].dtype == torch.uint8
    assert ((photo_sets.decoded(features) - features).abs() <= step / 2 + 1e-6).all()


@pytest.fixture
def no_type_checks():
    """Activations stand where annotations have pixels and token ids."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.data
@pytest.mark.models
@pytest.mark.skipif(not os.environ.get("CIBR_MODELS"), reason="no CIBR_MODELS")
def test_stages_read_what_the_frozen_ones_computed(no_type_checks):
    pairs = photo_sets.with_pictures("coco-mini").subset(range(20))
    shipped = photo_sets.with_features("coco-mini")
    model = DualEncoder.names(train_stages=2)
    inputs = stages.activations(model, pairs)
    expected = model.encode_images(model.preprocess([*pairs.images()])).pooled
    texts = pairs.texts()
    expected_texts = model.pool_texts(texts)
    n_trained = sum(weights.numel() for weights in model.parameters())
    stages.keep_trained_stages(model.towers)
    assert sum(weights.numel() for weights in model.parameters()) == n_trained
    features = stages.with_pooled(model, inputs).features
    torch.testing.assert_close(features.images, expected.detach(), rtol=0, atol=1e-5)
    rows = [features.strings.index(text) for text in texts]
    torch.testing.assert_close(features.texts[rows], expected_texts, rtol=0, atol=1e-5)
    assert (features.images - shipped.features.images[:20]).abs().max() < 0.1  # of 8 bits

    training = stages.training_inputs(inputs)
    batch = training[torch.arange(4), torch.arange(0, 20, 5)]
    by_row = model.encode_texts(*batch.texts).pooled
    torch.testing.assert_close(by_row.detach(), expected_texts[:20:5], rtol=0, atol=1e-5)
    assert torch.equal(training.labels, pairs.match_labels()[pairs.text_to_image()])


@pytest.mark.data
@pytest.mark.skipif(not os.environ.get("CIBR_DATA"), reason="no CIBR_DATA")
def test_photos_that_are_not_shipped_are_no_others():
    shipped = {key.rpartition("/")[-1] for key in load_pairs("photos", "train").keys}
    unshipped = photo_sets.with_pictures("flickr8k-unshipped").keys
    assert len(unshipped) == len({*unshipped}) == 1000
    assert shipped.isdisjoint(unshipped)
