"""Controls of the fine-tuning study: the parts of the alignment term, and pulls to the start.

Let m be the mean cosine of a batch's n pairs, and M that of all n^2 combinations of an image with a
text. The alignment term is the sum of two parts, exactly:

    (1 - m) / tau = (1 - M) / tau + (M - m) / tau

The first never asks which text belongs to which image. M is the inner product of the mean image
embedding and the mean text embedding, so it pulls the means together and makes them longer: it
closes the modality gap (Liang et al. 2022, arXiv 2203.02053). The second contrasts pairs with all
combinations. Both directions of CLIP's loss at a temperature T are log n + (M - m) / T + O(1 / T^2)
as T grows, so it is CLIP's loss at a very high temperature; and with a negative weight -e it is
label smoothing by e, exactly, if every label is in the batch once. Row i of the smoothed loss is

    -(1 - e) log p_ii - (e / n) sum_j log p_ij = -log p_ii + (e / tau) (cos_ii - mean_j cos_ij),

whose mean over the rows is CLIP's loss + e (m - M) / tau; the other direction is alike.
"""

import copy

import torch
from torch import Tensor
from torch.optim import Optimizer

from cibr.losses import PENALTIES, LossInputs, Penalty
from cibr.losses.clip import Scalar
from cibr.models import DualEncoder
from cibr.models.dual_encoder import Encoded


class GapOnly(Penalty):
    """(1 - M) / tau, the part of the alignment term that closes the modality gap."""

    def forward(self, inputs: LossInputs) -> Scalar:
        """The penalty of a batch."""
        of_all = inputs.image.mean(0) @ inputs.text.mean(0)
        return inputs.logit_scale.detach() * (1 - of_all)


class ContrastOnly(Penalty):
    """(M - m) / tau, the part of the alignment term that contrasts pairs.

    Args:
        sign: 1; or -1, for label smoothing by beta.
    """

    def __init__(self, sign: int = 1):
        super().__init__()
        self.sign = sign

    def forward(self, inputs: LossInputs) -> Scalar:
        """The penalty of a batch."""
        of_all = inputs.image.mean(0) @ inputs.text.mean(0)
        of_pairs = (inputs.image * inputs.text).sum(1).mean()
        return self.sign * inputs.logit_scale.detach() * (of_all - of_pairs)


class Anchor(Penalty):
    """(1 - cos) / tau with the same item's embedding at the start, the mean over both modalities.

    It is for an `AnchoredEncoder`, whose pooled features are the embeddings at the start.
    """

    needs = ("image_pooled", "text_pooled")

    def forward(self, inputs: LossInputs) -> Scalar:
        """The penalty of a batch."""
        image_cosine = (inputs.image * inputs.image_pooled).sum(1).mean()
        text_cosine = (inputs.text * inputs.text_pooled).sum(1).mean()
        return inputs.logit_scale.detach() * (1 - (image_cosine + text_cosine) / 2)


PENALTIES |= {"gap": GapOnly, "contrast": ContrastOnly, "anchor": Anchor}


class AnchoredEncoder(DualEncoder):
    """A model that also encodes as it did at the start, in place of pooled features.

    Args:
        model: at the start; its parts are shared.
    """

    def __init__(self, model: DualEncoder):
        super().__init__(model.towers, model.head)
        self.log_logit_scale = model.log_logit_scale
        self.is_pretrained = model.is_pretrained
        # In a list, so that it is no part of the model.
        self._start = [copy.deepcopy(model).eval().requires_grad_(False)]

    def encode_images(self, images: Tensor) -> Encoded:
        """As `DualEncoder.encode_images`; `pooled` has the embeddings at the start."""
        [start] = self._start
        return super().encode_images(images)._replace(pooled=start.encode_images(images).features)

    def encode_texts(self, texts: Tensor, mask: Tensor | None = None) -> Encoded:
        """As `DualEncoder.encode_texts`; `pooled` has the embeddings at the start."""
        [start] = self._start
        at_start = start.encode_texts(texts, mask).features
        return super().encode_texts(texts, mask)._replace(pooled=at_start)


def pull_to_start(optimizer: Optimizer, decay: float) -> None:
    """L2-SP: after each step of an optimiser, weights go back to the start by rate x decay of the
    way.

    Weight decay towards the start's weights in place of zero (Li, Grandvalet and Davoine 2018,
    arXiv 1802.01483), decoupled from the gradient as in AdamW.

    Args:
        optimizer: of the run, before its first step.
        decay: in units of 1 / rate.
    """
    starts = [
        (group, weights, weights.detach().clone())
        for group in optimizer.param_groups
        for weights in group["params"]
    ]

    @torch.no_grad()
    def pull(*_: object) -> None:
        for group, weights, start in starts:
            weights.lerp_(start, min(1.0, group["lr"] * decay))

    optimizer.register_step_post_hook(pull)
