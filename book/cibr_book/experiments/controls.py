"""Controls for CIBR: penalties, and losses with a contrastive term other than CLIP's.

Importing this module adds the penalties to `cibr.losses.PENALTIES`; they report the cosine distance
of the pairs, as `vmf` does, or a bound of their own. `LOSSES` has the losses by name.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.losses import PENALTIES, CIBRLoss, LossInputs
from cibr.losses.clip import Scalar
from cibr.losses.penalties import VMF, VMFBound

_HYCD_ALPHA = 0.5  # as in CLIP-Refine


class _CyCLIP(VMF):
    """Cross-modal plus in-modal cyclic consistency: 0 where <v_j, t_k> = <v_k, t_j> and so on.

    Source: Goel et al. (2022, arXiv 2205.14459), eqs. 2 and 3, on cosines, summed over one index
    and averaged over the other; both have weight 0.25 there.
    """

    def __init__(self):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Scalar:
        image, text = inputs.image, inputs.text
        cross = image @ text.T
        within = image @ image.T - text @ text.T
        return ((cross - cross.T).square().sum() + within.square().sum()) / len(image)


class _RaFA(VMF):
    """Random feature alignment: squared distance of both embeddings to a random vector of the pair.

    The vectors are drawn from the standard normal prior. Between unit vectors the distance would
    have no gradient in expectation, so it is taken before normalisation, from `image_projected` and
    `text_projected`.

    Source: Yamaguchi et al. (2025, arXiv 2504.12717), scaled as in their code, by 2 / d times the
    equation of the paper; its weight there is 1. The draw does not depend on the dtype and device.
    """

    needs = ("image_projected", "text_projected")
    ramps = False

    def __init__(self):
        super().__init__()

    def forward(self, inputs: LossInputs) -> Scalar:
        image, text = (inputs.others[name] for name in self.needs)
        generator = inputs.generator
        device = image.device if generator is None else generator.device
        reference = torch.randn(image.shape, generator=generator, device=device).to(image)
        return F.mse_loss(image, reference) + F.mse_loss(text, reference)


class Anchor(VMFBound):
    """Backward encoders centred at a fixed statistic U of the modality's own pooled features.

    It bounds I(Z_v;X_v|U_v), which is never below I(Z_v;X_v|U_v,X_t), the second term of
    I(Z_v;X_v|X_t) = I(Z_v;U_v|X_t) + I(Z_v;X_v|U_v,X_t). It does not bound the whole: at a report
    of 0 the first term may still be large. In effect it regularises the encoders towards the
    statistic. For wrong captions and frozen towers.

    Args:
        statistic: maps pooled features of both modalities to unit vectors u_v, u_t, such as
            `RegularisedCCA`.
        kappa_b: as in `VMFBound`.
    """

    needs = ("image_pooled", "text_pooled")
    ramps = False
    bounded = "beyond_statistic"

    def __init__(self, statistic: nn.Module, kappa_b: float = 10.0):
        super().__init__(kappa_b)
        if not isinstance(statistic, nn.Module):
            raise ValueError(
                f"the statistic of an anchor is a module, got {statistic!r}: "
                "fit one, such as RegularisedCCA.fit(image_pooled, text_pooled, dim)"
            )
        self.statistic = statistic.requires_grad_(False)

    def cosines(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        with torch.no_grad():
            image_centre, text_centre = self.statistic(inputs.image_pooled, inputs.text_pooled)
        image_cosines = (inputs.image * image_centre.to(inputs.image)).sum(1)
        text_cosines = (inputs.text * text_centre.to(inputs.text)).sum(1)
        return image_cosines.mean(), text_cosines.mean()


class _StartAnchor(VMFBound):
    """`Anchor` at the initial model's embeddings of the pair, for towers that move.

    It needs `teacher_image` and `teacher_text`, [n, d] each, unit vectors.
    """

    needs = ("teacher_image", "teacher_text")
    ramps = False
    bounded = "beyond_start"

    def cosines(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        image, text = (inputs.others[name].detach() for name in self.needs)
        return (inputs.image * image).sum(1).mean(), (inputs.text * text).sum(1).mean()


class _HyCDLoss(CIBRLoss):
    """Hybrid contrastive distillation: cross-entropy to half matches, half teacher's softmax.

    It needs `teacher_logits`, [n, n], a teacher's cosines times its own logit_scale.

    Source: Yamaguchi et al. (2025, arXiv 2504.12717), alpha = 0.5. Their KL divergence is this
    minus the entropy of the targets, which has no gradient. Their code compares unnormalised
    embeddings at temperature 1; here the logits are cosines times `logit_scale`, and matches by
    label share the target mass as in `clip_loss`.
    """

    @property
    def needs(self) -> set[str]:
        """The teacher's logits, and what the penalty needs."""
        return {*super().needs, "teacher_logits"}

    def contrastive_loss(self, inputs: LossInputs) -> Scalar:
        image, labels = inputs.z_image, inputs.labels
        labels = torch.arange(len(image), device=image.device) if labels is None else labels
        matches = (labels[:, None] == labels).to(image)
        matches = matches / matches.sum(1)  # symmetric: matching rows have equally many matches
        logits = inputs.logit_scale * image @ inputs.z_text.T
        teacher = inputs.others["teacher_logits"].detach()
        image_to_text = _distilled(logits, teacher, matches)
        return (image_to_text + _distilled(logits.T, teacher.T, matches)) / 2


def _distilled(
    student: Float[Tensor, "n n"], teacher: Float[Tensor, "n n"], matches: Float[Tensor, "n n"]
) -> Scalar:
    target = torch.lerp(teacher.softmax(1).to(matches), matches, _HYCD_ALPHA)
    return -(target * student.log_softmax(1)).sum(1).mean()


PENALTIES |= {"anchor": Anchor, "cyclip": _CyCLIP, "rafa": _RaFA, "start": _StartAnchor}
LOSSES = {"clip": CIBRLoss, "hycd": _HyCDLoss}
