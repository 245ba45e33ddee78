"""Adapters against their equations, their limits and another implementation."""

import itertools
import math
import shutil

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from small_suite import LEFT, RIGHT, make_small_suite

from cibr.metrics import zeroshot_accuracy
from cibr_book.experiments import adapters
from cibr_book.experiments.adapters import FewShot

ROWS = torch.arange(48).reshape(16, 3).T  # the images of class c are c, c + 3, c + 6, ...


def data(n=90, zero_shot=0.5):
    """Three clusters of unit vectors, and class embeddings that are their centres and noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    centres = torch.randn(3, 8, generator=generator)
    images = F.normalize(centres[labels] + 1.5 * torch.randn(n, 8, generator=generator), dim=1)
    noise = torch.randn(3, 8, generator=generator)
    return FewShot(images, labels, F.normalize(zero_shot * centres + noise, dim=1), 10.0)


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_gradient_of_the_probe_is_zero_and_a_strong_pull_leaves_the_zero_shot_weights(strength):
    few = data().subset(ROWS)
    w = adapters.linear_probes(few, [strength])[strength].double()
    t, x = few.classes.double(), few.images.double()
    own = (10 * x @ t.T).softmax(1)[torch.arange(48), few.labels]
    gradient = 10 / 48 * ((10 * x @ w.T).softmax(1) - F.one_hot(few.labels, 3)).T @ x
    for c in range(3):
        gradient[c] += strength / 3 * own[few.labels == c].mean() * 2 * (w[c] - t[c])
    # It begins near 1; the float32 loss resolves no more.
    assert gradient.abs().max() < 5e-4 < (w - t).abs().max()
    assert (adapters.linear_probes(few, [1e6])[1e6] - few.classes).abs().max() < 1e-4


def test_tip_adapter_equals_its_equation_as_a_loop():
    few, queries = data().subset(ROWS), data().images[48:]
    logits = adapters.tip_logits(few, queries, 2.0, 3.0)
    for q, query in enumerate(queries):
        expected = [10 * query @ t for t in few.classes]
        for image, label in zip(few.images, few.labels, strict=True):
            expected[label] = expected[label] + 2 * torch.exp(-3 * (1 - query @ image))
        torch.testing.assert_close(logits[q], torch.stack(expected), atol=1e-4, rtol=0)


def test_tuned_keys_start_at_the_images_and_lower_the_loss_at_a_rate_that_falls_over_20_epochs():
    few = data().subset(ROWS)
    keys = [adapters.tip_keys(few, 2.0, 3.0, 0.01, n) for n in range(21)]
    assert torch.equal(keys[0], few.images)
    logits = [adapters.tip_logits(few, few.images, 2.0, 3.0, k) for k in keys]
    losses = [F.cross_entropy(of_epoch, few.labels) for of_epoch in logits]
    assert losses == sorted(losses, reverse=True)
    steps = [(b - a).abs().max().item() for a, b in itertools.pairwise(keys)]
    rates = [0.005 * (1 + math.cos(math.pi * t / 20)) for t in range(20)]  # Adam's step is its rate
    assert steps[0] == pytest.approx(rates[0], rel=0.05) and steps[19] < 1.5 * rates[19]


def test_each_of_four_shots_is_held_out_in_turn_a_quarter_of_sixteen_once_and_one_shot_never():
    few = data()
    assert adapters.validation_splits(few, ROWS[:, :1]) == []
    four = adapters.validation_splits(few, ROWS[:, :4])
    assert [len(kept.labels) for kept, _ in four] == [9] * 4
    assert torch.equal(torch.cat([held.images for _, held in four]), few.images[:12])
    ((kept, held),) = adapters.validation_splits(few, ROWS)
    assert sorted(kept.images.tolist() + held.images.tolist()) == sorted(few.images[:48].tolist())
    assert held.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_the_setting_is_the_best_on_held_out_shots_and_the_first_without_any():
    logits = {"wrong": 1 - torch.eye(3), "right": torch.eye(3), "as right": torch.eye(3)}
    held = data().subset(ROWS[:, :1])
    assert adapters.choose(lambda *_: logits, list(logits), [(held, held)]) == "right"
    assert adapters.choose(lambda *_: logits, list(logits), []) == "wrong"


def test_adapters_beat_a_weak_classifier_and_see_nothing_but_the_shots():
    few = data(n=900, zero_shot=0.1)
    queries, labels = few.images[48:], few.labels[48:]
    adapted = adapters.adapt(few, ROWS, queries)
    zero_shot = adapters.accuracy(few.logits(queries), labels)
    assert zero_shot == zeroshot_accuracy(queries, few.classes, labels)["accuracy@1"]
    assert min(adapters.accuracy(logits, labels) for logits in adapted.values()) > zero_shot + 0.1
    hidden = few._replace(images=torch.cat([few.images[:48], 0 * queries]), labels=few.labels * 0)
    again = adapters.adapt(hidden, ROWS, queries)
    assert all(torch.equal(logits, again[name]) for name, logits in adapted.items())


def test_a_draw_splits_the_images_and_refuses_a_class_without_a_test_image():
    labels = torch.arange(60) % 3
    shots, rest = adapters.draw_shots(labels, 0)
    assert sorted(shots.flatten().tolist() + rest.tolist()) == list(range(60))
    assert not torch.equal(shots, adapters.draw_shots(labels, 1)[0])
    assert (labels[shots] == torch.arange(3)[:, None]).all() and shots.shape == (3, 16)
    with pytest.raises(ValueError, match="a class has 16 images: 16 shots and a test image"):
        adapters.draw_shots(labels[:48], 0)


def test_a_run_has_a_score_of_each_set_group_number_of_shots_and_method(
    tmp_path, monkeypatch, build
):
    root = make_small_suite(tmp_path, monkeypatch)
    shutil.copytree(root / "wds_left", root / "wds_twin")
    monkeypatch.setattr(adapters, "_SHOTS", (1, 2))

    def train(settings, folder):
        build("tiny").save_pretrained(folder)
        return settings

    monkeypatch.setattr(adapters, "train_and_measure", train)
    twin = LEFT._replace(dataset="twin", group="")
    settings = {"adapted": [twin, LEFT, RIGHT], "beta": 3.0}
    metrics = adapters.adapt_and_measure(settings, tmp_path / "run")
    assert metrics.pop("beta") == 3
    assert len(metrics) == (5 + 1) * 7 and metrics["mean of 2/0/zero-shot/deviation"] > 0
    for method in ("linear probe", "Tip-Adapter", "Tip-Adapter-F"):
        names = "twin", "left", "right", "sides", "mean of 2"
        keys = [f"{name}/2/{method}/accuracy@1" for name in names]
        twin, left, right, sides, mean = (metrics[key] for key in keys)
        assert twin == left and sides == pytest.approx((left + right) / 2)
        assert mean == pytest.approx((twin + sides) / 2)


def test_the_table_has_a_row_an_adapter_and_differences_paired_by_seed():
    columns = ["method", "beta", "seed", "mean of 7/4/Tip-Adapter/accuracy@1"]
    means = ("CLIP", 0.0, 0.30), ("CIBR", 1.0, 0.32)
    scores = [(method, b, s, mean + s / 100) for method, b, mean in means for s in (1, 2, 3)]
    rows = pd.DataFrame(scores, columns=columns)
    rows = rows.assign(condition="toys", hyperparameters="", validation=1.0)
    assert adapters.adapter_table(rows).loc["Tip-Adapter, 4 a class"].to_dict() == {
        "CLIP, beta 0": "32.0 ± 2.5",
        "CIBR, beta 1": "34.0 ± 2.5",
        "CIBR, beta 1, minus CLIP": "+2.00 [+2.00, +2.00] *",
    }
