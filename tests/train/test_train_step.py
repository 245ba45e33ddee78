"""What is not finite stops before its step or is skipped and counted; collapse and degenerate
batches are said.
"""

import math
import signal
import threading
import warnings

import pytest
import torch
from helpers import TEXTS, noise_pairs, picture
from small_runs import train
from torch.nn import functional as F

from cibr.data import Pairs
from cibr.losses import CIBRLoss
from cibr.train import loop
from cibr.train.checkpoint import checkpoints

PAIRS = noise_pairs(24)


@pytest.fixture
def run(tmp_path):
    """Trains a narrow model for two epochs of three steps; returns it with its history."""

    def run(folder="out", pairs=PAIRS, **options):
        settings = dict(dropout=0.0, epochs=2, learn_temperature=False) | options
        return train(tmp_path / folder, pairs, None, **settings)[:2]

    return run


def spoil(monkeypatch, step, where):
    """Puts a NaN into the features, the loss or the gradient of one step."""
    real, calls = CIBRLoss.forward, []

    def forward(loss_fn, image_features, text_features, **rest):
        calls.append(1)
        if len(calls) == step and where == "features":
            image_features = image_features * math.nan
        if len(calls) == step and where == "gradient":
            text_features.register_hook(lambda gradient: gradient * math.inf)
        terms = real(loss_fn, image_features, text_features, **rest)
        return terms | {
            "loss": terms["loss"] * (math.nan if len(calls) == step and where == "loss" else 1)
        }

    monkeypatch.setattr(CIBRLoss, "forward", forward)


NOT_FINITE = [("features", "image_features must be finite")]
NOT_FINITE += [("loss", "it is not finite .*clip_loss .*, loss nan, .*gradient norm")]
NOT_FINITE += [("gradient", "it is not finite .*clip_loss .*, loss .*, gradient norm (inf|nan)")]


@pytest.mark.parametrize(("where", "message"), NOT_FINITE)
def test_non_finite_stops(run, monkeypatch, tmp_path, where, message):
    spoil(monkeypatch, 5, where)
    steps, real = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **o: steps.append(1) or real(*a, **o))
    with pytest.raises(FloatingPointError, match=f"step 5 was not taken: {message}") as raised:
        run()
    assert len(steps) == 4
    newest = checkpoints(tmp_path / "out")[-1]
    assert newest.name == "step-000000003.pt" and f"last good checkpoint is {str(newest)!r}" in str(
        raised.value
    )


def test_zero_vectors_stop_a_run_in_words(run):
    def silence(model):
        torch.nn.init.zeros_(model.backbone.text_head[2].weight)

    message = "step 1 was not taken: text_features must be unit vectors.*there is no checkpoint yet"
    with pytest.raises(FloatingPointError, match=message):
        run(prepare=silence)


def test_critics_that_overflow_are_not_finite_either(run, monkeypatch):
    real = loop.build_loss

    def overflowing(*given):
        loss_fn, optimizer = real(*given)
        for parameter in loss_fn.critics.parameters():
            torch.nn.init.constant_(parameter, 1e18)
        return loss_fn, optimizer

    monkeypatch.setattr(loop, "build_loss", overflowing)
    with pytest.raises(
        FloatingPointError, match="step 1 was not taken: the (scores of the critic|critics' loss)"
    ):
        run(penalty="mine")


def fill_memory(patch, at_call):
    """Makes a step of a run fail as a full GPU does."""
    real, calls = loop.GradCache, []

    def full(*given):
        calls.append(1)
        if len(calls) == at_call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given)

    patch.setattr(loop, "GradCache", full)


def test_out_of_memory_names_the_micro_batch_to_try_and_the_run_goes_on_with_it(run):
    whole = run("whole")[0].state_dict()
    attempts = [(0, 5, "8 rows", 4), (4, 2, "4 rows", 2)]
    for size, at_call, words, half in attempts:
        with pytest.MonkeyPatch.context() as patch:
            fill_memory(patch, at_call)
            message = f"step 5 was not .* memory with {words} at once; the last .*Set micro_batch_size to {half} and"
            with pytest.raises(ValueError, match=message):
                run(micro_batch_size=size)
    for name, tensor in run(micro_batch_size=2)[0].state_dict().items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-3, atol=1e-3)


def test_health_against_loops_and_known_batches():
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(7, 5, generator=generator, dtype=torch.float64)) for _ in range(2)
    )
    health = loop.embedding_health(image, text, torch.tensor([4, 4, 1, 2, 3, 1, 1]))
    for name, x in (("image", image), ("text", text)):
        cosines = [x[i] @ x[j] for i in range(7) for j in range(7) if i != j]
        assert health[f"{name}_mean_cosine"].item() == pytest.approx(
            sum(cosines).item() / 42, abs=1e-12
        )
    assert health["repeated_captions"].item() == pytest.approx(3 / 7)
    point = F.normalize(torch.ones(7, 5))
    assert loop.embedding_health(point, point, torch.arange(7))[
        "image_mean_cosine"
    ].item() == pytest.approx(1)


def test_constant_embeddings_are_said_once_when_a_third_of_the_run_is_over(run):
    same = Pairs("same", "train", PAIRS.captions, PAIRS.keys, lambda i: picture(0))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(pairs=same, epochs=4)
    images = [
        str(warning.message) for warning in said if "image embeddings" in str(warning.message)
    ]
    assert len(images) == 1 and images[0].startswith(
        "epoch 2: image_mean_cosine is 1.0000: image embeddings are"
    )


def test_captions_that_mostly_repeat_are_said(run):
    few = Pairs(
        "few", "train", [[TEXTS[i >= 20]] for i in range(40)], [str(i) for i in range(40)], picture
    )
    with pytest.warns(UserWarning, match="repeated_captions is 0.95.*: repeats are no negatives"):
        _, history = run(pairs=few, batch_size=40)
    assert history["repeated_captions"].tolist() == pytest.approx([38 / 40] * 2)


def test_signals_are_noted_and_the_handlers_that_were_there_come_back():
    numbers = signal.SIGTERM, signal.SIGINT
    before = [signal.getsignal(number) for number in numbers]
    with loop._noted_signals() as noted:
        signal.raise_signal(signal.SIGTERM)
        noted.clear()
        signal.raise_signal(signal.SIGINT)
        assert noted == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):  # the second Ctrl-C
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before
    thread = threading.Thread(target=lambda: loop._noted_signals().__enter__())
    thread.start()
    thread.join()
    assert [signal.getsignal(number) for number in numbers] == before
