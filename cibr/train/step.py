"""One optimisation step whose gradients are those of the whole batch, however the batch is cut.

The loss of a contrastive batch does not split into a mean over parts. So the loss is taken on the gathered
features of all parts and processes as leaves; its gradient with respect to this process's rows then goes back
through the encoders, part by part, and the encoders' gradients are summed over processes. With more than one
part, each part is encoded twice: first without a graph, then again with the same random state, so that dropout
repeats (the scheme of Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup").
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from cibr.inputs import Batch, encode_images, encode_texts
from cibr.losses import CIBRLoss
from cibr.models import DualEncoder, Encoded

BUCKET = 2**24  # entries of gradients that are summed over processes at once


class CriticSteps(NamedTuple):
    """How the critics of a loss are trained beside the encoders."""

    optimizer: torch.optim.Optimizer
    n_steps: int = 1


def contrastive_backward(
    model: DualEncoder,
    loss_fn: CIBRLoss,
    batch: Batch,
    accelerator: Accelerator,
    *,
    beta: float,
    generator: torch.Generator,
    micro_batch_size: int = 0,
    mixed_precision: str = "no",
    critics: CriticSteps | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """Adds the gradients of the whole batch, over all parts and processes, to the model's parameters.

    Args:
        model: the encoders.
        loss_fn: the loss on the whole batch.
        batch: this process's rows; every process has the same number.
        accelerator: the processes.
        beta: the penalty's weight at this step.
        generator: the noise of the whole batch, in the same state on every process.
        micro_batch_size: rows that are encoded at once; 0 for all.
        mixed_precision: `bf16` for the encoders, or `no`; the loss is float32 at least.
        critics: how the loss's critics, where it has some, are trained before the encoders' gradients are taken.

    Returns:
        The terms of the loss on the whole batch, and `embedding_health` of its features.

    Raises:
        FloatingPointError: features or a critics' loss that are not finite, named; the same on every process.
    """
    n, device = len(batch.labels), batch.images.device
    size = micro_batch_size or n
    parts = [slice(start, start + size) for start in range(0, n, size)]

    def encode_part(rows: slice) -> dict[str, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16"):
            image = encode_images(model, batch.images[rows])
            text = encode_texts(model, tuple(t[rows] for t in batch.texts))
        return _named(image, text, with_pooled=loss_fn.critics is not None)

    states, encoded = [], []
    with torch.set_grad_enabled(len(parts) == 1):
        for rows in parts:
            states.append(_random_state(device))
            encoded.append(encode_part(rows))
    leaves = {
        name: accelerator.gather(torch.cat([outputs[name] for outputs in encoded]).detach()).requires_grad_()
        for name in encoded[0]
    }
    labels = accelerator.gather(batch.labels)
    _check_finite({**leaves, "log_logit_scale": model.log_logit_scale})
    if critics is not None:
        _train_critics(loss_fn, critics, leaves, generator, accelerator)
    with _as_not_finite("the loss"):
        terms = loss_fn(**leaves, logit_scale=model.logit_scale, labels=labels, beta=beta, generator=generator)
    terms["loss"].backward()
    first = accelerator.process_index * n
    for rows, state, outputs in zip(parts, states, encoded, strict=True):
        if len(parts) > 1:
            with _replayed(state, device):
                outputs = encode_part(rows)
        mine = slice(first + rows.start, first + min(rows.stop, n))
        moved = [(o, leaves[name].grad[mine]) for name, o in outputs.items() if leaves[name].grad is not None]
        torch.autograd.backward(*zip(*moved, strict=True))
    _join_gradients(model, accelerator)
    return terms | embedding_health(leaves["image_features"], leaves["text_features"], labels)


@torch.no_grad()
def embedding_health(image: Tensor, text: Tensor, labels: Tensor) -> dict[str, Float[Tensor, ""]]:
    """What a loss hides: whether the vectors of a batch differ, whether some are zero, how many captions repeat.

    Args:
        image: unit vectors, [n, d].
        text: unit vectors, [n, d].
        labels: equal for equal captions, [n].

    Returns:
        `image_mean_cosine` and `text_mean_cosine` between different rows, near 1 for embeddings that have
        collapsed to a point; `zero_vectors` and `repeated_captions` as fractions of the batch.
    """
    n, health, zeros = len(labels), {}, 0.0
    for side, features in (("image", image), ("text", text)):
        squares = features.square().sum(1)
        health[f"{side}_mean_cosine"] = (features.sum(0).square().sum() - squares.sum()) / (n * (n - 1))
        zeros = zeros + (squares < 0.25).to(squares).sum() / (2 * n)  # a unit vector, or none
    repeated = torch.tensor(1 - len(torch.unique(labels)) / n).to(zeros)
    return health | {"zero_vectors": zeros, "repeated_captions": repeated}


def _named(image: Encoded, text: Encoded, with_pooled: bool) -> dict[str, Tensor]:
    """Outputs of both encoders by the loss's names, in float32 at least; pooled ones where critics read them."""
    named = {}
    for side, encoded in (("image", image), ("text", text)):
        named[f"{side}_features"] = encoded.features
        if encoded.log_variance is not None:
            named[f"{side}_log_variance"] = encoded.log_variance
        if with_pooled:
            named[f"{side}_pooled"] = encoded.pooled.detach()
    return {name: t.float() if t.dtype == torch.bfloat16 else t for name, t in named.items()}


def _train_critics(
    loss_fn: CIBRLoss, critics: CriticSteps, leaves: dict[str, Tensor], generator, accelerator: Accelerator
) -> None:
    """Steps of the critics on the whole batch, held fixed: every process takes the same ones."""
    fixed = {name: leaf.detach() for name, leaf in leaves.items()}
    for _ in range(critics.n_steps):
        averages = {name: buffer.clone() for name, buffer in loss_fn.named_buffers()}
        critics.optimizer.zero_grad(set_to_none=True)
        try:
            with _as_not_finite("the critics' loss"):
                loss = loss_fn.critic_loss(**fixed, generator=generator)
            loss.backward()
            for parameter in loss_fn.parameters():
                _average(parameter, accelerator)
            gradients = {name: p.grad for name, p in loss_fn.named_parameters() if p.grad is not None}
            _check_finite({"the critics' loss": loss} | {f"the gradient of {k}": g for k, g in gradients.items()})
        except FloatingPointError:
            for name, buffer in loss_fn.named_buffers():
                buffer.copy_(averages[name])
            raise
        critics.optimizer.step()


@contextmanager
def _as_not_finite(name: str):
    """What a loss refuses for not being finite, as that; other refusals are a caller's mistake."""
    try:
        yield
    except ValueError as error:
        if "finite" in str(error):
            raise FloatingPointError(f"{name}: {error}") from error
        raise


def _check_finite(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.detach().sum()) and not torch.isfinite(tensor).all():
            raise FloatingPointError(f"{name} has entries that are NaN or infinite")


def _join_gradients(model: DualEncoder, accelerator: Accelerator) -> None:
    """Sums the encoders' gradients over processes; the temperature's is that of the whole batch already."""
    if accelerator.num_processes == 1:
        return
    _average(model.log_logit_scale, accelerator)
    gradients = [p.grad for p in model.parameters() if p.grad is not None and p is not model.log_logit_scale]
    bucket: list[Tensor] = []
    for i, gradient in enumerate(gradients):
        bucket.append(gradient)
        if i == len(gradients) - 1 or sum(g.numel() for g in bucket) >= BUCKET:
            flat = accelerator.reduce(torch.cat([g.flatten() for g in bucket]), reduction="sum")
            for g, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                g.copy_(summed.view_as(g))
            bucket = []


def _average(parameter: torch.nn.Parameter, accelerator: Accelerator) -> None:
    """A gradient that every process has whole; the mean keeps rounding from driving the processes apart."""
    if accelerator.num_processes > 1 and parameter.grad is not None:
        parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _replayed(state: tuple[Tensor, Tensor | None], device: torch.device):
    """Sets the random state of a part's first encoding, and afterwards the present one again."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield
