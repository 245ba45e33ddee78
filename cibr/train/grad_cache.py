"""Gradients of the whole batch, for any division into micro-batches and over processes.

The loss of a contrastive batch is not a mean over parts. So it is computed on the features of all
parts and processes, gathered as leaves; its gradient with respect to this process's rows is then
propagated through the encoders, and the encoders' gradients are summed over processes. With more
than one part, activations are not kept: each part is encoded again in the backward pass, from the
same random state, so dropout is the same (Gao et al. 2021, "Scaling deep contrastive learning batch
size under memory limited setup", arXiv 2101.06983, by `torch.utils.checkpoint`).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cibr.models import DualEncoder
from cibr.models.features import Batch, encode_images, encode_texts


class GradCache:
    """Features of a batch as leaves of the loss's graph, with a backward pass through the encoders.

    Args:
        model: the encoders.
        batch: this process's rows; every process has the same number.
        accelerator: an `accelerate.Accelerator`.
        micro_batch_size: rows encoded at once; 0 for all.
        mixed_precision: `bf16` for the encoders, or `no`; features are at least float32.
        with_pooled: also return the pooled features, for penalties that need them.
        with_projected: also return the unnormalised embeddings, for which the heads run a second
            time.

    Attributes:
        features: of the whole batch, [n, _] each, by the argument names of `CIBRLoss`.
        labels: of the whole batch, [n].

    Examples:
        >>> cache = GradCache(model, batch, accelerator, micro_batch_size=64)  # doctest: +SKIP
        >>> terms = loss_fn(**cache.features, logit_scale=model.logit_scale)  # doctest: +SKIP
        >>> terms["loss"].backward()  # doctest: +SKIP
        >>> cache.backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: DualEncoder,
        batch: Batch,
        accelerator,
        micro_batch_size: int = 0,
        mixed_precision: str = "no",
        with_pooled: bool = False,
        with_projected: bool = False,
    ):
        def encode(rows: slice) -> dict[str, Tensor]:
            with torch.autocast(
                batch.images.device.type, torch.bfloat16, enabled=mixed_precision == "bf16"
            ):
                image = encode_images(model, batch.images[rows])
                text = encode_texts(model, tuple(part[rows] for part in batch.texts))
                named = {"image_features": image.features, "text_features": text.features}
                if with_pooled:
                    named |= {
                        "image_pooled": image.pooled.detach(),
                        "text_pooled": text.pooled.detach(),
                    }
                if with_projected:
                    named["image_projected"] = model.backbone.image_head(image.pooled)
                    named["text_projected"] = model.backbone.text_head(text.pooled)
            return {
                name: t.float() if t.dtype == torch.bfloat16 else t for name, t in named.items()
            }

        n, self.model, self.accelerator = len(batch.labels), model, accelerator
        size = micro_batch_size or n
        parts = [slice(start, start + size) for start in range(0, n, size)]
        kept = len(parts) == 1
        encoded = [
            encode(rows) if kept else checkpoint(encode, rows, use_reentrant=False)
            for rows in parts
        ]
        self._own = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
        self.features: dict[str, Float[Tensor, "n _"]] = {
            name: accelerator.gather(own.detach()).requires_grad_()
            for name, own in self._own.items()
        }
        self.labels: Int[Tensor, " n"] = accelerator.gather(batch.labels)

    def backward(self) -> None:
        """Adds the gradients of `features` to the model's parameters, over all parts and processes."""
        first = self.accelerator.process_index * len(self._own["image_features"])
        # Pooled features are detached, and projected ones get no gradient while beta is 0.
        slopes = {name: leaf.grad for name, leaf in self.features.items() if leaf.grad is not None}
        used = {
            name: own for name, own in self._own.items() if own.requires_grad and name in slopes
        }
        gradients = [slopes[name][first : first + len(own)] for name, own in used.items()]
        torch.autograd.backward([*used.values()], gradients)
        average_gradient(self.model.log_logit_scale, self.accelerator)
        if self.accelerator.num_processes > 1:
            for parameter in self.model.parameters():
                if parameter.grad is not None and parameter is not self.model.log_logit_scale:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="sum")


def average_gradient(parameter: torch.nn.Parameter, accelerator) -> None:
    """Averages a gradient that every process has in full, so that processes do not diverge by
    rounding.
    """
    if accelerator.num_processes > 1 and parameter.grad is not None:
        parameter.grad = accelerator.reduce(parameter.grad, reduction="mean")
