"""What is not finite stops before its step or is skipped and counted; collapse and degenerate batches are said."""

import math
import signal
import threading
import warnings

import pytest
import torch
from accelerate import Accelerator
from conftest import TEXTS, noise_pairs, picture
from torch.nn import functional as F

from cibr import fit
from cibr.data import Pairs
from cibr.train import build_model, configure, guards, loop
from cibr.train.checkpoint import checkpoints
from cibr.train.optimise import precision
from cibr.train.step import embedding_health

PAIRS = noise_pairs(24)


@pytest.fixture
def run(tmp_path):
    """Trains the tiny model for two epochs of three steps; returns it with its history."""

    def run(folder="out", pairs=PAIRS, prepare=None, **options):
        settings = dict(dropout=0.0, beta=0.1, epochs=2, batch_size=8, learning_rate=1e-3) | options
        config = configure(output_dir=str(tmp_path / folder), **settings)
        model = build_model(config, pairs)
        if prepare:
            prepare(model)
        return model, fit(model, pairs, None, config)

    return run


def spoil(monkeypatch, step, where):
    """Puts a NaN into the features, the loss or the gradient of one step."""
    real, calls = loop.contrastive_backward, []

    def backward(model, *args, **options):
        calls.append(1)
        if len(calls) != step:
            return real(model, *args, **options)
        if where == "features":
            hook = model.backbone.image_head.register_forward_hook(lambda *a: a[-1] * math.nan)
            try:
                return real(model, *args, **options)
            finally:
                hook.remove()
        terms = real(model, *args, **options)
        if where == "gradient":
            model.backbone.text_head[2].weight.grad[0, 0] = math.inf
            return terms
        return terms | {"loss": terms["loss"] * math.nan}

    monkeypatch.setattr(loop, "contrastive_backward", backward)


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("features", "image_features has entries that are NaN or infinite"),
        ("loss", "clip_loss .*, loss nan, .*gradient norm"),
        ("gradient", "clip_loss .*, loss .*, gradient norm (inf|nan)"),
    ],
)
def test_non_finite_stops(run, monkeypatch, tmp_path, where, message):
    spoil(monkeypatch, 5, where)
    steps, real = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *a, **o: steps.append(1) or real(*a, **o))
    with pytest.raises(FloatingPointError, match=f"step 5 is not finite .*{message}") as raised:
        run()
    assert len(steps) == 4  # the fifth was not taken
    newest = checkpoints(tmp_path / "out" / "checkpoints")[-1]
    assert newest.name == "step-000000003.pt" and f"last good checkpoint is {str(newest)!r}" in str(raised.value)


def test_non_finite_in_the_first_step_says_that_there_is_no_checkpoint(run, monkeypatch):
    spoil(monkeypatch, 1, "loss")
    with pytest.raises(FloatingPointError, match="step 1 is not finite .*there is no checkpoint yet"):
        run()


@pytest.mark.parametrize("where", ["features", "loss", "gradient"])
@pytest.mark.parametrize("step", [1, 5])
def test_a_skipped_step_is_counted_and_moves_nothing(run, monkeypatch, where, step):
    spoil(monkeypatch, step, where)
    states, real = [], torch.optim.AdamW.step

    def stepped(optimizer, *args, **options):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = [p.clone() for p in parameters]
        real(optimizer, *args, **options)
        states.append(all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True)))

    stepped._wrapped_by_lr_sched = True
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")  # of the wrapper above
        _, history = run(on_non_finite="skip")
    assert states == [i == step - 1 for i in range(6)]
    assert history["skipped_steps"].tolist() == ([1, 0] if step == 1 else [0, 1])
    assert not history.isna().any().any() and history["step"].tolist() == [3, 6]


def test_a_first_step_that_is_skipped_gives_no_warning(run, monkeypatch):
    spoil(monkeypatch, 1, "loss")
    assert run(on_non_finite="skip")[1]["skipped_steps"].tolist() == [1, 0]


def test_an_epoch_without_a_finite_step_ends_the_run_also_when_skipping(run):
    def ruin(model):
        torch.nn.init.constant_(model.backbone.image_head[2].weight, math.nan)

    with pytest.raises(FloatingPointError, match="epoch 1 has no finite step"):
        run(prepare=ruin, on_non_finite="skip")


@pytest.mark.parametrize("estimator", ["mine", "club"])
def test_critics_that_overflow_are_not_finite_either(run, estimator):
    real = loop.build_loss

    def overflowing(*given):
        loss_fn, critics = real(*given)
        for parameter in loss_fn.critics.parameters():
            torch.nn.init.constant_(parameter, 1e18)
        return loss_fn, critics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "build_loss", overflowing)
        with pytest.raises(FloatingPointError, match="step 1 is not finite \\(the critics' loss"):
            run(estimator=estimator)


def test_health_against_loops_and_known_batches():
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(7, 5, generator=generator, dtype=torch.float64)) for _ in range(2))
    text[2] = 0
    health = embedding_health(image, text, torch.tensor([4, 4, 1, 2, 3, 1, 1]))
    for name, x in (("image", image), ("text", text)):
        cosines = [x[i] @ x[j] for i in range(7) for j in range(7) if i != j]
        assert health[f"{name}_mean_cosine"].item() == pytest.approx(sum(cosines).item() / 42, abs=1e-12)
    assert health["zero_vectors"].item() == pytest.approx(1 / 14)
    assert health["repeated_captions"].item() == pytest.approx(3 / 7)
    point = F.normalize(torch.ones(7, 5))
    assert embedding_health(point, point, torch.arange(7))["image_mean_cosine"].item() == pytest.approx(1)


def test_a_run_as_usual_says_nothing_and_shows_its_health(run):
    history = run()[1]  # a warning would be an error
    columns = ["image_mean_cosine", "text_mean_cosine", "zero_vectors", "repeated_captions"]
    assert (history[columns].abs() < guards.COLLAPSED).all().all() and (history["zero_vectors"] == 0).all()


def test_constant_embeddings_are_said_once(run):
    same = Pairs("grey", "train", PAIRS.captions, PAIRS.keys, grey)
    with pytest.warns(UserWarning, match="epoch 1: image embeddings are nearly one point: .* is 1.0000") as said:
        run(pairs=same)
    assert len(said) == 1


def grey(i):
    return picture(0)


def test_zero_vectors_are_said(run):
    def silence(model):
        torch.nn.init.zeros_(model.backbone.text_head[2].weight)
        model.backbone.text_head[2].weight.requires_grad_(False)

    with pytest.warns(UserWarning, match="50.00% of the embeddings are zero vectors"):
        _, history = run(prepare=silence)
    assert history["zero_vectors"].tolist() == [0.5, 0.5] and not history.isna().any().any()


def test_captions_that_mostly_repeat_are_said_and_one_for_all_is_refused(run):
    texts = [[TEXTS[i >= 20]] for i in range(40)]
    few = Pairs("few", "train", texts, [str(i) for i in range(40)], picture)
    with pytest.warns(UserWarning, match="9[0-9]% of a batch's captions are repeats"):
        _, history = run(pairs=few, batch_size=40)
    assert history["repeated_captions"].tolist() == pytest.approx([38 / 40] * 2)
    with pytest.raises(ValueError, match="all captions of train of few are one, 'a red cat'"):
        run(pairs=few.subset(range(20)))


def test_a_second_run_of_this_process_may_have_another_precision(run):
    exact = run("a")[1]
    rough = run("b", mixed_precision="bf16")[1]
    assert exact["loss"].tolist() != rough["loss"].tolist()
    assert rough["loss"].tolist() == pytest.approx(exact["loss"].tolist(), rel=0.1)


def test_a_precision_whose_gradients_need_scaling_is_refused():
    class Half(Accelerator):
        mixed_precision = "fp16"

    with pytest.raises(ValueError, match="accelerate is set to mixed_precision 'fp16': it is 'no' or 'bf16'"):
        precision(configure(), Half())


def test_sigterm_is_noted_and_the_handler_that_was_there_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with guards.StopRequest() as stop:
        assert not stop.noted
        signal.raise_signal(signal.SIGTERM)
        assert stop.noted
    assert signal.getsignal(signal.SIGTERM) == before
    thread = threading.Thread(target=lambda: guards.StopRequest().__enter__().__exit__())
    thread.start()
    thread.join()
