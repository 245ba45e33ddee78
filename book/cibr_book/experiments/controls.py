"""The controls of the study: penalties and contrastive losses that CIBR is compared with.

Importing this module adds them to `cibr.losses.PENALTIES` and `cibr.losses.CONTRASTIVE`. The
penalties of this file but `consistency` report the residuals of `vmf`, which bound the information
of any encoder.
"""

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.losses import CONTRASTIVE, PENALTIES, LossInputs, Term
from cibr.losses.clip import Features, Labels, Scalar
from cibr.losses.penalties import VMF, VMFBound, label_index, mean_product

_TEACHER_TEMPERATURE = 0.1
_HYCD_ALPHA = 0.5  # as in CLIP-Refine
_BIAS_UNIT = 10.0


class Control(VMF):
    """A penalty with the reports of `vmf`."""

    def __init__(self):
        super().__init__()


class Cosine(Control):
    """1 - mean cosine of the pairs."""

    def forward(self, inputs: LossInputs) -> Scalar:
        return 1 - mean_product(inputs.image, inputs.text)


class AlignmentUniformity(Control):
    """Mean squared distance of pairs, plus the log mean Gaussian potential within each modality.

    Source: Wang & Isola (2020, arXiv 2005.10242), alpha = 2 and t = 2, the uniformity of both sides
    averaged.
    """

    def forward(self, inputs: LossInputs) -> Scalar:
        n = len(inputs.image)
        total = (inputs.image - inputs.text).square().sum(1).mean()
        for features in (inputs.image, inputs.text):
            potential = (4 * features @ features.T - 4).exp()  # exp(-2 * squared distance)
            others = potential.sum() - potential.diagonal().sum()
            total = total + (others / (n * (n - 1))).log() / 2
        return total


class CyCLIP(Control):
    """Cross-modal plus in-modal cyclic consistency: 0 where <v_j, t_k> = <v_k, t_j> and so on.

    Source: Goel et al. (2022, arXiv 2205.14459), eqs. 2 and 3, on cosines, summed over one index
    and averaged over the other; both have weight 0.25 there.
    """

    def forward(self, inputs: LossInputs) -> Scalar:
        image, text = inputs.image, inputs.text
        cross = image @ text.T
        within = image @ image.T - text @ text.T
        return ((cross - cross.T).square().sum() + within.square().sum()) / len(image)


class SoftTargets(Control):
    """Symmetric cross-entropy to soft targets from the similarities of frozen-tower features.

    The target of a row is a softmax, at temperature 0.1, over the other pairs of the batch; its
    logits are the mean of the image and the text cosines of centred features. The pair itself is
    excluded: it would take nearly all of the target mass, and the contrastive loss covers it.

    Source: soft alignment as in PyramidCLIP and SoftCLIP (Gao et al. 2023, arXiv 2303.17561), with
    the towers as teachers and without the other terms of those losses.
    """

    needs = ("image_pooled", "text_pooled")

    def forward(self, inputs: LossInputs) -> Scalar:
        similarity = 0.0
        for pooled in (inputs.image_pooled.detach(), inputs.text_pooled.detach()):
            centred = F.normalize(pooled - pooled.mean(0), dim=1)
            similarity = similarity + centred @ centred.T
        logits = inputs.logit_scale * inputs.z_image @ inputs.z_text.T
        similarity = similarity / (2 * _TEACHER_TEMPERATURE)
        target = similarity.fill_diagonal_(-torch.inf).softmax(1).to(logits)
        return -(target * (logits.log_softmax(1) + logits.T.log_softmax(1))).sum(1).mean() / 2


class RaFA(Control):
    """Random feature alignment: squared distance of both embeddings to a random vector of the pair.

    The vectors are drawn from the standard normal prior. Between unit vectors the distance would
    have no gradient in expectation, so it is taken before normalisation.

    Source: Yamaguchi et al. (2025, arXiv 2504.12717), scaled as in their code, by 2 / d times the
    equation of the paper; its weight there is 1. The draw does not depend on the dtype and device.
    """

    needs = ("image_projected", "text_projected")
    ramps = False

    def forward(self, inputs: LossInputs) -> Scalar:
        image, text = (inputs.others[name] for name in self.needs)
        generator = inputs.generator
        device = image.device if generator is None else generator.device
        reference = torch.randn(image.shape, generator=generator, device=device).to(image)
        return F.mse_loss(image, reference) + F.mse_loss(text, reference)


class Consistency(VMFBound):
    """Same-item consistency: backward encoders centred at the mean of the other rows of a label.

    It is not the CIBR objective: with two rows a label it bounds I(Z_v;X_v|X_v') for another
    rendering X_v' of the item, with m rows what the other m - 1 do not tell. A counterfactual-
    invariance penalty related to CoRe (Heinze-Deml and Meinshausen, arXiv 1710.11469), which does
    not penalise what all renderings share. Rows with a unique label are excluded.
    """

    needs = ("labels",)
    bounded = "beyond_other_renderings"

    def cosines(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        cosines = []
        for features in (inputs.image, inputs.text):
            means, is_shared = other_means(features, inputs.labels)
            distances = (1 - (features * means).sum(1)) * is_shared
            cosines.append(1 - distances.sum() / is_shared.sum().clamp(min=1))
        if not is_shared.any():
            message = "every label of the batch is unique, so 'consistency' has nothing to compare"
            warnings.warn(f"{message}: put renderings of one item into a batch", stacklevel=2)
        return cosines[0], cosines[1]


def other_means(features: Features, labels: Labels) -> tuple[Features, Bool[Tensor, " n"]]:
    """Leave-one-out mean direction of the other rows with each row's label.

    Source: for x_v' drawn beside x_v, b(z) = E vMF(z; mu(x_v'), kappa_b) is a backward encoder, and
    by Jensen -log b is at most the mean of the others' own terms; the leave-one-out mean estimates
    the centre.

    Args:
        features: unit vectors, [n, d].
        labels: equal for renderings of one item, [n].

    Returns:
        Unit vectors [n, d], and a mask [n] of the rows whose label is shared; the rest keep their
        own vector.
    """
    index = label_index(labels)
    counts = torch.zeros_like(index).index_add(0, index, torch.ones_like(index))
    sums = torch.zeros_like(features).index_add(0, index, features)
    is_shared = counts[index] > 1
    others = torch.where(is_shared[:, None], sums[index] - features, features)
    return F.normalize(others, dim=1), is_shared


class SigLIP(Term):
    """Sigmoid loss over all image-text pairs of the batch, with a trained bias.

    Source: Zhai et al. (2023, arXiv 2303.15343), algorithm 1. The bias starts at -10 as theirs; it
    is trained in units of 10, since runs here have a few hundred steps.
    """

    def __init__(self):
        super().__init__()
        self.scaled_bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, inputs: LossInputs) -> Scalar:
        bias = _BIAS_UNIT * self.scaled_bias
        logits = inputs.logit_scale * inputs.z_image @ inputs.z_text.T + bias
        if inputs.labels is None:
            positive = logits.diagonal().sum()
        else:
            positive = logits[inputs.labels[:, None] == inputs.labels].sum()
        return (F.softplus(logits).sum() - positive) / len(logits)


class HyCD(Term):
    """Hybrid contrastive distillation: cross-entropy to half matches, half teacher's softmax.

    Source: Yamaguchi et al. (2025, arXiv 2504.12717), alpha = 0.5. Their KL divergence is this
    minus the entropy of the targets, which has no gradient. Their code compares unnormalised
    embeddings at temperature 1; here the logits are cosines times `logit_scale`, and matches by
    label share the target mass as in `clip_loss`.
    """

    needs = ("teacher_logits",)

    def forward(self, inputs: LossInputs) -> Scalar:
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


PENALTIES |= {
    "consistency": Consistency,
    "cosine": Cosine,
    "alignment_uniformity": AlignmentUniformity,
    "cyclip": CyCLIP,
    "soft_targets": SoftTargets,
    "rafa": RaFA,
}
CONTRASTIVE |= {"siglip": SigLIP, "hycd": HyCD}
