"""Gradients of the whole batch, for any division into micro-batches and over processes.

The loss of a contrastive batch is not a mean over parts. So it is computed on the features of all
parts and processes, gathered as leaves; its gradient with respect to this process's rows is then
propagated through the encoders, and the encoders' gradients are summed over processes. With more
than one part, activations are not kept: each part is encoded again in the backward pass, from the
same random state, so dropout is the same (Gao et al. 2021, "Scaling deep contrastive learning batch
size under memory limited setup", arXiv 2101.06983, by `torch.utils.checkpoint`).
"""

from collections.abc import Collection
from datetime import timedelta

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cibr.models import DualEncoder
from cibr.models.features import Batch, encode_images, encode_texts

_LONGEST_WAIT = timedelta(hours=3)  # for the process that extracts a frozen tower's features


class GradCache:
    """Features of a batch as leaves of the loss's graph, with a backward pass through the encoders.

    Args:
        model: the encoders.
        batch: this process's rows; every process has the same number.
        accelerator: an `accelerate.Accelerator`.
        micro_batch_size: rows encoded at once; 0 for all.
        mixed_precision: `bf16` for the encoders, or `no`; features are at least float32.
        needs: of the loss: `pooled` for the inputs of the heads, `projected` for their outputs
            before normalisation, for which the heads run a second time.

    Attributes:
        features: of the whole batch, [n, _] each, by the argument names of `CIBRLoss`.
        labels: of the whole batch, [n].

    Examples:
        >>> cache = GradCache(model, batch, accelerator, micro_batch_size=64)  # doctest: +SKIP
        >>> terms = loss_fn(**cache.features, logit_scale=model.logit_scale)  # doctest: +SKIP
        >>> sum(terms.values()).backward()  # doctest: +SKIP
        >>> cache.backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: DualEncoder,
        batch: Batch,
        accelerator,
        micro_batch_size: int = 0,
        mixed_precision: str = "no",
        needs: Collection[str] = (),
    ):
        def encode(rows: slice) -> dict[str, Tensor]:
            is_bf16 = mixed_precision == "bf16"
            with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=is_bf16):
                image = model.encode_images(batch.images[rows])
                text = model.encode_texts(*(part[rows] for part in batch.texts))
                named = {"image_features": image.features, "text_features": text.features}
                if "pooled" in needs:
                    named["image_pooled"] = image.pooled.detach()
                    named["text_pooled"] = text.pooled.detach()
                if "projected" in needs:
                    named["image_projected"] = model.backbone.image_head(image.pooled)
                    named["text_projected"] = model.backbone.text_head(text.pooled)
            return {
                name: t.float() if t.dtype == torch.bfloat16 else t for name, t in named.items()
            }

        self.model = model
        self.accelerator = accelerator
        n = len(batch.labels)
        size = micro_batch_size or n
        parts = [slice(start, start + size) for start in range(0, n, size)]
        if len(parts) == 1:
            encoded = [encode(parts[0])]
        else:
            encoded = [checkpoint(encode, rows, use_reentrant=False) for rows in parts]
        self._own = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
        self.features: dict[str, Float[Tensor, "n _"]] = {
            name: accelerator.gather(own.detach()).requires_grad_()
            for name, own in self._own.items()
        }
        self.labels: Int[Tensor, " n"] = accelerator.gather(batch.labels)

    def backward(self) -> None:
        """Adds the gradients of `features` to the model's parameters, over parts and processes."""
        first = self.accelerator.process_index * len(self._own["image_features"])
        tensors, gradients = [], []
        for name, own in self._own.items():
            # Pooled features are detached, and projected ones get no gradient while beta is 0.
            slope = self.features[name].grad
            if own.requires_grad and slope is not None:
                tensors.append(own)
                gradients.append(slope[first : first + len(own)])
        torch.autograd.backward(tensors, gradients)
        average_gradient(self.model.log_logit_scale, self.accelerator)
        if self.accelerator.num_processes > 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None and parameter is not self.model.log_logit_scale:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="sum")


def average_gradient(parameter: nn.Parameter, accelerator) -> None:
    """Averages a gradient that every process has in full, so that they do not drift by rounding."""
    if accelerator.num_processes > 1 and parameter.grad is not None:
        parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")


def launched_processes():
    """The accelerator of the launcher's processes, or of one; without a GPU they share the CPU."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    options = [InitProcessGroupKwargs(timeout=_LONGEST_WAIT)]
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=options)


def rows_per_process(batch_size: int, n_pairs: int, n_processes: int) -> int:
    """Rows of a batch in each process, the same for all.

    Raises:
        ValueError: a batch that the processes cannot share equally.
    """
    n_rows = min(batch_size, n_pairs)
    if n_rows < n_processes or (batch_size % n_processes and batch_size <= n_pairs):
        cannot = f"{n_processes} processes cannot share a batch of {n_rows} pairs equally"
        raise ValueError(f"{cannot}: give batch_size a multiple of their number, or use fewer")
    return n_rows // n_processes
