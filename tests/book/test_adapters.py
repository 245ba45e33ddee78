"""Adapters against their equations, their limits and another implementation; CoOp on a small random
CLIPModel.
"""

from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers import TEXTS
from small_suite import LEFT, RIGHT, make_small_suite

from cibr.metrics import zeroshot_accuracy
from cibr_book import adapters
from cibr_book.adapters import FewShot
from cibr_book.tables import read_table

ROWS = torch.arange(48).reshape(16, 3).T  # the images of class c are c, c + 3, c + 6, ...


def data(n=90, d=8, zero_shot=0.5):
    """Three clusters of unit vectors, and class embeddings that are their centres and noise."""
    generator, labels = torch.Generator().manual_seed(0), torch.arange(n) % 3
    centres = torch.randn(3, d, generator=generator)
    images = F.normalize(centres[labels] + 1.5 * torch.randn(n, d, generator=generator), dim=1)
    noise = torch.randn(3, d, generator=generator)
    return FewShot(images, labels, F.normalize(zero_shot * centres + noise, dim=1), 10.0)


@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_gradient_of_the_probe_is_zero_and_a_strong_pull_leaves_the_zero_shot_weights(strength):
    few = data().subset(ROWS)
    w, t, x = (
        adapters.linear_probes(few, [strength])[strength].double(),
        few.classes.double(),
        few.images.double(),
    )
    own = (10 * x @ t.T).softmax(1)[torch.arange(48), few.labels]
    gradient = 10 / 48 * ((10 * x @ w.T).softmax(1) - F.one_hot(few.labels, 3)).T @ x
    for c in range(3):
        gradient[c] += strength / 3 * own[few.labels == c].mean() * 2 * (w[c] - t[c])
    assert (
        gradient.abs().max() < 5e-4 < (w - t).abs().max()
    )  # it begins near 1; the float32 loss resolves no more
    assert (adapters.linear_probes(few, [1e6])[1e6] - few.classes).abs().max() < 1e-4


def test_without_zero_shot_weights_the_probe_is_scikit_learns_ridge_regression():
    from sklearn.linear_model import LogisticRegression

    few = data()._replace(classes=torch.zeros(3, 8)).subset(ROWS)
    # mean CE + 2 * mean_c |w_c|^2 / 3: a uniform zero-shot classifier gives every image 1/3
    reference = LogisticRegression(C=9 / (2 * 2 * 48), fit_intercept=False, tol=1e-9, max_iter=1000)
    reference.fit(10 * few.images.double().numpy(), few.labels.numpy())
    assert (
        adapters.linear_probes(few, [2.0, 9.0])[2.0] - torch.from_numpy(reference.coef_)
    ).abs().max() < 1e-4


def test_tip_adapter_equals_its_equation_as_a_loop_and_only_its_keys_are_tuned():
    few, queries = data().subset(ROWS), data().images[48:]
    found = adapters.tip_logits(few, queries, 2.0, 3.0)
    for q, query in enumerate(queries):
        expected = [10 * query @ t for t in few.classes]
        for image, label in zip(few.images, few.labels, strict=True):
            expected[label] = expected[label] + 2 * torch.exp(-3 * (1 - query @ image))
        torch.testing.assert_close(found[q], torch.stack(expected), atol=1e-4, rtol=0)
    keys = adapters.tip_keys(few, 2.0, 3.0, 0.01, 20)
    losses = [
        F.cross_entropy(adapters.tip_logits(few, few.images, 2.0, 3.0, k), few.labels) for k in keys
    ]
    assert torch.equal(keys[0], few.images) and losses == sorted(losses, reverse=True)
    assert torch.equal(adapters.tip_keys(few, 2.0, 3.0, 0.01, 5)[5], keys[5])


def test_each_of_four_shots_is_held_out_in_turn_a_quarter_of_sixteen_once_and_one_shot_never():
    few = data()
    assert adapters.validation_splits(few, ROWS[:, :1]) == []
    four = adapters.validation_splits(few, ROWS[:, :4])
    assert [len(held.labels) for _, held in four] == [3] * 4 and len(four[0][0].labels) == 9
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
    found = adapters.adapt(few, ROWS, queries)
    zero_shot = adapters.accuracy(few.logits(queries), labels)
    assert zero_shot == zeroshot_accuracy(queries, few.classes, labels)["accuracy@1"]
    assert min(adapters.accuracy(logits, labels) for logits in found.values()) > zero_shot + 0.1
    hidden = few._replace(images=torch.cat([few.images[:48], 0 * queries]), labels=few.labels * 0)
    again = adapters.adapt(hidden, ROWS, queries)
    assert list(found) == list(again) and all(
        torch.equal(found[name], again[name]) for name in found
    )


def test_a_draw_splits_the_images_and_refuses_a_class_without_a_test_image():
    labels = torch.arange(60) % 3
    (shots, rest), (other, _) = adapters.draw_shots(labels, 0), adapters.draw_shots(labels, 1)
    assert sorted(shots.flatten().tolist() + rest.tolist()) == list(range(60)) and not torch.equal(
        shots, other
    )
    assert (labels[shots] == torch.arange(3)[:, None]).all() and shots.shape == (3, 16)
    with pytest.raises(ValueError, match="a class has 16 images: 16 shots and one to test"):
        adapters.draw_shots(labels[:48], 0)


def test_prompts_of_real_tokens_are_the_models_own_texts_and_learned_ones_lower_the_loss(build):
    model, names = build("clip").train(), ["cat", "dog", "big bird"]
    phrase = " ".join(TEXTS[:4])
    ids = model.tokenize([phrase])[0][0, :-1]  # without the end
    context = model.backbone.model.text_model.embeddings.token_embedding(ids).detach()
    expected = model.embed_texts([f"{phrase} {name}." for name in names])
    torch.testing.assert_close(adapters.prompt_features(model, context, names).detach(), expected)
    few = data(d=16).subset(ROWS)
    learned, losses = adapters.learn_prompts(model, few, names, n_context=16, epochs=40)
    assert learned.shape == (16, 32) and losses[-1] < losses[0] - 0.05 and model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="the model reads 40: learn fewer vectors"):
        adapters.prompt_features(model, torch.zeros(38, 32), names)


def test_a_run_has_a_score_of_each_set_group_number_of_shots_and_method(
    tmp_path, monkeypatch, build
):
    make_small_suite(tmp_path, monkeypatch)
    monkeypatch.setattr(adapters, "SHOTS", (1, 2))
    saved = lambda settings, folder: build("tiny").save_pretrained(folder) and {"steps": 3.0}  # noqa: E731
    monkeypatch.setattr(adapters, "train_and_measure", saved)
    found = adapters.adapt_and_measure(
        {"adapted": [LEFT._replace(group=""), RIGHT]}, tmp_path / "run"
    )
    names = ["left", "right", "sides", "mean of 2"]
    scores = [
        "0/zero-shot",
        *(f"{k}/{m}" for k in (1, 2) for m in ("linear probe", "Tip-Adapter", "Tip-Adapter-F")),
    ]
    expected = {f"{name}/{score}/accuracy@1" for name in names for score in scores}
    assert set(found) == expected | {f"mean of 2/{score}/deviation" for score in scores} | {"steps"}
    both = [found[f"{name}/2/linear probe/accuracy@1"] for name in ("left", "sides")]
    assert found["mean of 2/2/linear probe/accuracy@1"] == pytest.approx(sum(both) / 2)


def test_the_table_has_a_row_an_adapter_and_differences_paired_by_seed():
    models = [("CLIP", 0.0, 0.30), ("CIBR", 1.0, 0.32)]
    table = [
        (method, beta, seed, mean + seed / 100)
        for method, beta, mean in models
        for seed in (1, 2, 3)
    ]
    rows = pd.DataFrame(
        table, columns=["method", "beta", "seed", "mean of 7/4/Tip-Adapter/accuracy@1"]
    )
    found = adapters.adapter_table(
        rows.assign(condition="toys", hyperparameters="", validation=1.0)
    )
    assert list(found) == ["CLIP, beta 0", "CIBR, beta 1", "CIBR, beta 1, minus CLIP"]
    assert found.loc["Tip-Adapter, 4 a class"].tolist() == [
        "32.0 ± 2.5",
        "34.0 ± 2.5",
        "+2.00 [+2.00, +2.00] *",
    ]


def test_the_chapter_says_what_the_rows_say():
    rows = read_table("adapters.csv")
    assert rows.groupby(["method", "beta"]).size().tolist() == [5, 5, 5]
    scores = rows.filter(regex=r"^mean of 7/(4|16)/.*@1$")
    of = {beta: scores[rows["beta"] == beta].to_numpy() for beta in (0.0, 0.1, 1.0)}
    losses = 100 * (of[0.0] - of[1.0]).mean(axis=0)
    prose = (Path(__file__).resolve().parents[2] / "book" / "zeroshot.ipynb").read_text()
    assert f"every adapter loses, by {losses.min():.1f} to {losses.max():.1f} points" in prose
    assert abs(100 * (of[0.1] - of[0.0]).mean(axis=0)).max() < 0.2
    one = rows.filter(regex=r"^mean of 7/1/.*@1$").groupby(rows["beta"]).mean()
    gains = 100 * (one.loc[0.1] - one.loc[0.0])
    assert f"is ahead by {gains.min():.1f} to {gains.max():.1f} points" in prose
