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
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cibr.models import DualEncoder
from cibr.models.features import Batch


class GradCache:
    """Features of a batch as leaves of the loss's graph, with a backward pass through the encoders.

    Args:
        model: the encoders.
        batch: this process's rows; every process has the same number.
        accelerator: an `accelerate.Accelerator`; its `mixed_precision` is the encoders', `bf16` or
            `no`, but features are at least float32.
        micro_batch_size: rows encoded at once; 0 for all.
        needs: what the loss reads beside unit vectors, of `image_pooled` and `text_pooled`.

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
        accelerator,
        micro_batch_size: int = 0,
        needs: Collection[str] = (),
    ):
        self.model = model
        self.accelerator = accelerator
        self.needs = needs
        n = len(batch.labels)
        size = micro_batch_size or n
        parts = [slice(start, start + size) for start in range(0, n, size)]
        encode = self._encode
        if len(parts) > 1:  # activations are computed again in the backward pass
            encode = partial(checkpoint, self._encode, use_reentrant=False)
        encoded = [encode(batch, rows) for rows in parts]
        self._own = {name: torch.cat([part[name] for part in encoded]) for name in encoded[0]}
        self.features: dict[str, Float[Tensor, "n _"]] = {
            name: accelerator.gather(own.detach()).requires_grad_()
            for name, own in self._own.items()
        }
        self.labels: Int[Tensor, " n"] = accelerator.gather(batch.labels)

    def _encode(self, batch: Batch, rows: slice) -> dict[str, Tensor]:
        """The inputs of the loss from a part of the batch, in float32 or a wider type."""
        is_bf16 = self.accelerator.mixed_precision == "bf16"
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=is_bf16):
            image = self.model.encode_images(batch.images[rows])
            text = self.model.encode_texts(*(part[rows] for part in batch.texts))
        named = {"image_features": image.features, "text_features": text.features}
        pooled = {"image_pooled": image.pooled.detach(), "text_pooled": text.pooled.detach()}
        # In one order on all processes, as these are gathered one by one.
        named |= {name: x for name, x in pooled.items() if name in self.needs}
        return {
            name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in named.items()
        }

    def backward(self) -> None:
        """Adds the gradients of `features` to the model's parameters, over parts and processes."""
        first = self.accelerator.process_index * len(self._own["image_features"])
        tensors, gradients = [], []
        for name, own in self._own.items():
            gradient = self.features[name].grad  # None of what the loss did not use
            if own.requires_grad and gradient is not None:
                tensors.append(own)
                gradients.append(gradient[first : first + len(own)])
        torch.autograd.backward(tensors, gradients)
        if self.accelerator.num_processes == 1:
            return
        for parameter in self.model.parameters():
            is_whole = parameter is self.model.log_logit_scale
            if parameter.grad is not None:  # whole ones are equal up to rounding
                reduction = "mean" if is_whole else "sum"
                parameter.grad = self.accelerator.reduce(parameter.grad, reduction=reduction)
