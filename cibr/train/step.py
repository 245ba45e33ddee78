"""One optimisation step whose gradients are those of the whole batch, however the batch is cut.

The loss of a contrastive batch does not split into a mean over parts. So the loss is taken on the gathered
features of all parts and processes as leaves; its gradient with respect to this process's rows then goes back
through the encoders, part by part, and the encoders' gradients are summed over processes. With more than one
part, each part is encoded twice: first without a graph, then again with the same random state, so that dropout
repeats (the scheme of Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup").
"""

from contextlib import contextmanager

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from cibr.losses import CIBRLoss
from cibr.models import DualEncoder, Encoded
from cibr.train.inputs import Batch


def encode_images(model: DualEncoder, images: Tensor) -> Encoded:
    """Images of `Inputs`: bytes, or pooled features of a frozen tower."""
    if model.kind == "frozen":
        return model.project_images(images)
    return model.encode_images(model.normalise(images))


def encode_texts(model: DualEncoder, texts: tuple[Tensor, ...]) -> Encoded:
    """Texts of `Inputs`: token ids and mask, or pooled features of a frozen tower."""
    return model.project_texts(*texts) if model.kind == "frozen" else model.encode_texts(*texts)


def contrastive_backward(
    model: DualEncoder,
    loss_fn: CIBRLoss,
    batch: Batch,
    accelerator: Accelerator,
    *,
    beta: float,
    generator: torch.Generator,
    micro_batch_size: int = 0,
) -> dict[str, Float[Tensor, ""]]:
    """Adds the gradients of the whole batch, over all parts and processes, to the model's parameters.

    Args:
        model: the encoders.
        loss_fn: the loss on the whole batch.
        batch: this process's rows; every process has the same number.
        accelerator: the processes and the precision of the encoders.
        beta: the penalty's weight at this step.
        generator: the noise of the whole batch, in the same state on every process.
        micro_batch_size: rows that are encoded at once; 0 for all.

    Returns:
        The terms of the loss on the whole batch.
    """
    n = len(batch.labels)
    size = micro_batch_size or n
    parts = [slice(start, start + size) for start in range(0, n, size)]

    def encode_part(rows: slice) -> list[Tensor]:
        with accelerator.autocast():
            image = encode_images(model, batch.images[rows])
            text = encode_texts(model, tuple(t[rows] for t in batch.texts))
        return [t.float() if t.dtype == torch.bfloat16 else t for t in (*image, *text) if t is not None]

    states, encoded = [], []
    with torch.set_grad_enabled(len(parts) == 1):
        for rows in parts:
            states.append(_random_state(batch.images.device))
            encoded.append(encode_part(rows))
    leaves = [accelerator.gather(torch.cat(t).detach()).requires_grad_() for t in zip(*encoded, strict=True)]
    labels = accelerator.gather(batch.labels)
    terms = loss_fn(
        *_features(leaves), model.logit_scale, labels, **_extras(leaves), beta=beta, generator=generator
    )
    terms["loss"].backward()
    first = accelerator.process_index * n
    for rows, state, outputs in zip(parts, states, encoded, strict=True):
        if len(parts) > 1:
            with _replayed(state, batch.images.device):
                outputs = encode_part(rows)
        mine = slice(first + rows.start, first + min(rows.stop, n))
        moved = [(o, leaf.grad[mine]) for o, leaf in zip(outputs, leaves, strict=True) if leaf.grad is not None]
        torch.autograd.backward(*zip(*moved, strict=True))
    _sum_over_processes(model, accelerator)
    return terms


def _features(leaves: list[Tensor]) -> tuple[Tensor, Tensor]:
    return leaves[0], leaves[len(leaves) // 2]


def _extras(leaves: list[Tensor]) -> dict[str, Tensor]:
    """Pooled features (no gradient passes to them through a critic) and log variances, by the loss's names."""
    half = len(leaves) // 2
    extras = {"image_pooled": leaves[1].detach(), "text_pooled": leaves[half + 1].detach()}
    if half == 3:
        extras |= {"image_log_variance": leaves[2], "text_log_variance": leaves[half + 2]}
    return extras


def _sum_over_processes(model: DualEncoder, accelerator: Accelerator) -> None:
    """Sums the encoders' gradients; the temperature's is already that of the whole batch everywhere."""
    if accelerator.num_processes == 1:
        return
    for parameter in model.parameters():
        if parameter.grad is not None and parameter is not model.log_logit_scale:
            parameter.grad = accelerator.reduce(parameter.grad, reduction="sum")


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
