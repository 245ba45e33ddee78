"""Gradients of the whole batch, for any division into micro-batches and over processes.

The loss of a contrastive batch is not a mean over parts. So it is computed on the features of all
parts and processes, gathered as leaves; its gradient with respect to this process's rows is then
propagated through the encoders, and the encoders' gradients are summed over processes. With more
than one part, activations are not kept: each part is encoded again in the backward pass, from the
same random state, so dropout is the same (Gao et al. 2021, "Scaling deep contrastive learning batch
size under memory limited setup", arXiv 2101.06983, by `torch.utils.checkpoint`).
"""

from collections.abc import Collection
from functools import partial

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cibr.models import DualEncoder
from cibr.models.inputs import Batch


class GradCache:
    """Features of a batch as leaves of the loss's graph, with a backward pass through the encoders.

    Args:
        model: the encoders.
        batch: this process's rows; every process has the same number.
        accelerator: an `accelerate.Accelerator`, which knows the processes.
        micro_batch_size: rows encoded at once; None for all.
        needs: the optional features that the loss reads: `image_pooled`, `text_pooled`.
        bf16: whether the encoders compute in bfloat16; features are at least float32.

    Attributes:
        features: of the whole batch, [n, _] each, by name.
        labels: of the whole batch, [n].

    Examples:
        >>> cache = GradCache(model, batch, accelerator, micro_batch_size=64)  # doctest: +SKIP
        >>> inputs = cache.features | {"labels": cache.labels}  # doctest: +SKIP
        >>> terms = loss_fn(**inputs, logit_scale=model.logit_scale)  # doctest: +SKIP
        >>> sum(terms.values()).backward()  # doctest: +SKIP
        >>> cache.backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: DualEncoder,
        batch: Batch,
        accelerator: Accelerator,
        *,
        micro_batch_size: int | None = None,
        needs: Collection[str] = (),
        bf16: bool = False,
    ):
        self.model = model
        self.accelerator = accelerator
        self.needs = needs
        self.bf16 = bf16

        n = len(batch.labels)
        size = micro_batch_size or n
        parts = [slice(start, start + size) for start in range(0, n, size)]
        encode = self._encode
        if len(parts) > 1:  # activations are computed again in the backward pass
            encode = partial(checkpoint, self._encode, use_reentrant=False)
        encoded = [encode(batch, rows) for rows in parts]

        # Of this process's rows, in the graph of the encoders.
        self._local = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
        self.features: dict[str, Float[Tensor, "n _"]] = {
            name: accelerator.gather(local.detach()).requires_grad_()
            for name, local in self._local.items()
        }
        self.labels: Int[Tensor, " n"] = accelerator.gather(batch.labels)

    def _encode(self, batch: Batch, rows: slice) -> dict[str, Tensor]:
        """The inputs of the loss from a part of the batch, in float32 or a wider type."""
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=self.bf16):
            image = self.model.encode_images(batch.images[rows])
            text = self.model.encode_texts(*(tensor[rows] for tensor in batch.texts))
        outputs = {"image_features": image.features, "text_features": text.features}
        # In the same order on all processes: each name is gathered by a collective call.
        if "image_pooled" in self.needs:
            outputs["image_pooled"] = image.pooled.detach()
        if "text_pooled" in self.needs:
            outputs["text_pooled"] = text.pooled.detach()
        return {name: _at_least_float32(x) for name, x in outputs.items()}

    def backward(self) -> None:
        """Adds the gradients of `features` to the model's parameters, over parts and processes."""
        n_rows = len(self._local["image_features"])
        start = self.accelerator.process_index * n_rows
        rows = slice(start, start + n_rows)
        tensors = []
        gradients = []
        for name, local in self._local.items():
            gradient = self.features[name].grad  # None if the loss did not use this input
            if local.requires_grad and gradient is not None:
                tensors.append(local)
                gradients.append(gradient[rows])
        torch.autograd.backward(tensors, gradients)
        if self.accelerator.num_processes == 1:
            return

        for parameter in self.model.parameters():
            if parameter.grad is None:
                continue
            # The temperature enters the loss itself, so every process has its whole gradient.
            is_whole = parameter is self.model.log_logit_scale
            reduction = "mean" if is_whole else "sum"
            parameter.grad = self.accelerator.reduce(parameter.grad, reduction=reduction)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
