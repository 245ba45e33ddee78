"""CIBR: CLIP's loss plus what only one modality knows.

    L_CIBR = L_CLIP + beta * R,   R = (I(Z_v; X_v | X_t) + I(Z_t; X_t | X_v)) / 2

after Ji et al. (2025, arXiv 2503.24182), who published no code. With `vmf` and `gaussian`
R is replaced by the upper bounds of `cibr.information`, so that minimising the sum is
sound for every backward encoder; `siblings`, `prototype` and `crossfit` are that of `vmf`
with a backward encoder that a finite sample cannot satisfy by heart. With `mine`, the paper's
choice, and `club` it is estimated by critics that train beside the encoders.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.information import info_nce_nats, sample_vmf
from cibr.losses.backward import Prototypes, crossfitted_means, sibling_means
from cibr.losses.contrastive import Number, check_shapes, clip_loss, full_precision
from cibr.losses.critics import CRITIC_ESTIMATORS, ResidualCritics, held_fixed
from cibr.losses.penalties import checked_log_variances, gaussian_penalty, vmf_penalty, weigh
from cibr.names import nearest

VMF_ESTIMATORS = ("vmf", "siblings", "prototype", "crossfit")
ESTIMATORS = (*VMF_ESTIMATORS, "gaussian", *CRITIC_ESTIMATORS)


def beta_at(progress: Number, beta: Number) -> float:
    """Weight of the penalty at a point of training: 0, then a ramp, then beta.

    Zero for the first third, linear to beta at two thirds, constant from there: a
    penalty from the first step stalls training from scratch.

    Args:
        progress: fraction of training done, in [0, 1].
        beta: final weight.

    Returns:
        The weight for this step.

    Raises:
        ValueError: progress is outside [0, 1].
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress}: pass step / n_steps, not the step")
    return float(beta) * min(max(3 * progress - 1, 0.0), 1.0)


def _check_beta(beta: Number) -> float:
    if not 0 <= beta < math.inf:
        raise ValueError(
            f"beta must be finite and not negative, got {beta}: it is the weight of an "
            "upper bound that is minimised, pass 0 to train plain CLIP"
        )
    return float(beta)


class CIBRLoss(nn.Module):
    """CLIP's loss plus beta times an upper bound on what only one modality knows.

    With `vmf`, e(z|x_v) = vMF(mu_v, kappa_e) and b(z|x_t) = vMF(mu_t, kappa_b), and the
    same with v and t exchanged: the penalty is kappa_b A_d(kappa_e) (1 - cosine) plus a
    constant. `siblings`, `prototype` and `crossfit` centre b elsewhere, see
    `cibr.losses.backward`; the first two read the labels, and rows without a sibling in
    the batch, or whose label never came up, do not count. With `gaussian`,
    e(z|x_v) = N(mu_v, diag exp(image_log_variance)) and
    b(z|x_t) = N(mu_t, diag exp(text_log_variance)); the sample is normalised before it
    is compared, which can only lose information, so the bound stays a bound. With `mine`
    and `club`, e is that of `vmf`, the residual is estimated by `critics` (see
    `cibr.losses.critics`), and whoever trains lowers `critic_loss` with an optimiser of
    `critics.parameters()`.

    Source: the objective of Ji et al. (2025, arXiv 2503.24182), with the variational
    bounds of Fischer (2020, arXiv 2002.05379) besides MINE, which is theirs.

    Args:
        beta: weight of the penalty, >= 0.
        estimator: one of `ESTIMATORS`.
        kappa_e: concentration of the encoders (all but gaussian).
        kappa_b: concentration of the backward encoders in the penalty (`VMF_ESTIMATORS`).
        text_weight: the texts' share of R, in [0, 1]; 1/2 in its definition, 1 leaves the images alone.
        stop_gradient: hold the backward encoders fixed, so that only e moves (not mine and club).
        sample: compare samples of e(z|x) rather than its means, in training and in
            evaluation alike: the noise is part of what the terms mean.
        dims: widths of the embeddings, of the image tower's and of the text tower's
            pooled features (mine, club; of prototype the first).
        n_labels: how many labels there are, numbered from 0 (prototype).

    Raises:
        ValueError: an unknown estimator, a beta that is negative or not finite, a
            concentration that is not positive and finite, or no dims or n_labels where
            critics or prototypes need them.
    """

    def __init__(
        self,
        beta: Number,
        estimator: str = "vmf",
        kappa_e: Number = 1024.0,
        kappa_b: Number = 10.0,
        sample: bool = True,
        dims: tuple[int, int, int] | None = None,
        text_weight: Number = 0.5,
        stop_gradient: bool = False,
        n_labels: int | None = None,
    ):
        super().__init__()
        if estimator not in ESTIMATORS:
            near = nearest(estimator, ESTIMATORS)
            raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}{near}")
        if not 0 <= text_weight <= 1:
            raise ValueError(f"text_weight is the texts' share of the penalty, in [0, 1]; got {text_weight}")
        if stop_gradient and estimator in CRITIC_ESTIMATORS:
            raise ValueError(f"{estimator!r} has no backward encoder to hold fixed: leave stop_gradient out")
        for name, kappa in (("kappa_e", kappa_e), ("kappa_b", kappa_b)):
            if not 0 < kappa < math.inf:
                raise ValueError(
                    f"{name} must be positive and finite, got {kappa}: it is the "
                    "concentration of a von Mises-Fisher distribution, try 10 to 1000"
                )
        self.beta = _check_beta(beta)
        self.estimator = estimator
        self.kappa_e, self.kappa_b = float(kappa_e), float(kappa_b)
        self.sample = sample
        self.text_weight, self.stop_gradient = float(text_weight), stop_gradient
        self.critics = None
        if estimator in CRITIC_ESTIMATORS:
            if dims is None or len(dims) != 3:
                raise ValueError(
                    f"dims must be the widths of the embeddings and of both towers' pooled features for the "
                    f"estimator {estimator!r}, got {dims}: pass dims=(dim, dim_image_pooled, dim_text_pooled)"
                )
            self.critics = ResidualCritics(estimator, *dims)
        if estimator == "prototype":
            if not dims or not n_labels:
                raise ValueError(
                    f"the estimator 'prototype' keeps a mean for every label: pass dims (got {dims}) and "
                    f"n_labels (got {n_labels}), the number of labels"
                )
            self.prototypes = nn.ModuleDict({side: Prototypes(n_labels, dims[0]) for side in ("image", "text")})

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, estimator={self.estimator!r}, kappa_e={self.kappa_e}, "
            f"kappa_b={self.kappa_b}, sample={self.sample}, text_weight={self.text_weight}, "
            f"stop_gradient={self.stop_gradient}"
        )

    def forward(
        self,
        image_features: Float[Tensor, "n d"],
        text_features: Float[Tensor, "n d"],
        logit_scale: Float[Tensor, ""] | Number,
        labels: Int[Tensor, " n"] | None = None,
        *,
        image_log_variance: Float[Tensor, "n d"] | None = None,
        text_log_variance: Float[Tensor, "n d"] | None = None,
        image_pooled: Float[Tensor, "n p"] | None = None,
        text_pooled: Float[Tensor, "n q"] | None = None,
        beta: Number | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Float[Tensor, ""]]:
        """The terms of the loss and what they say about information.

        Args:
            image_features: unit vectors mu_v, [n, d].
            text_features: unit vectors mu_t, [n, d].
            logit_scale: multiplier of the cosines, 1 / temperature.
            labels: as in `clip_loss`, [n].
            image_log_variance: log variances of e(z|x_v), [n, d]; gaussian only.
            text_log_variance: log variances of e(z|x_t), [n, d]; gaussian only.
            image_pooled: features before the projection, [n, p]; mine and club only.
            text_pooled: the same of the texts, [n, q].
            beta: weight for this step, the module's own if None.
            generator: source of the noise, drawn for all n rows at once.

        Returns:
            Scalars. `clip_loss`; `penalty_loss`, beta times the penalty; `loss`, the
            sum of the two. Detached, in nats: `residual_image_nats` and
            `residual_text_nats`, the upper bounds on information of one modality only,
            for `vmf` at the kappa_b that fits the batch, not that of the penalty, and
            for `mine` and `club` estimates that bound nothing while the critics learn;
            `mi_lower_bound_nats`, log n - clip_loss, with labels a lower bound if image
            and text are conditionally independent given the label; `penalty_excess`,
            the penalty minus its value at cosine 1 (but for `vmf`, minus 0), which is no
            information.

        Raises:
            ValueError: as in `clip_loss`, for a beta that is negative or not finite,
                for `gaussian` without log variances, and for `mine` and `club`
                without pooled features.
        """
        beta = self.beta if beta is None else _check_beta(beta)
        check_shapes(image_features, text_features, labels, None)
        image, text = full_precision(image_features), full_precision(text_features)
        log_variances = None
        if self.estimator == "gaussian":
            log_variances = checked_log_variances(image, image_log_variance, text_log_variance)
        z_image, z_text = image, text
        if self.sample:
            z_image, z_text = self._sample(image, text, log_variances, generator)
        contrastive = clip_loss(z_image, z_text, logit_scale, labels)
        with torch.set_grad_enabled(beta > 0 and torch.is_grad_enabled()):
            if self.estimator in VMF_ESTIMATORS:
                cosines = self._cosines(image, text, labels)
                kappas = (self.kappa_e, self.kappa_b)
                penalty, reports = vmf_penalty(cosines, image.shape[1], *kappas, self.text_weight)
            elif self.estimator == "gaussian":
                sides = ((image, log_variances[0]), (text, log_variances[1]))
                penalty, reports = gaussian_penalty(*sides, self.text_weight, self.stop_gradient)
            else:
                pooled = {"image": image_pooled, "text": text_pooled}
                penalty, reports = self._estimated_penalty(z_image, z_text, pooled, contrastive)
            weighted = beta * penalty.to(contrastive) if beta else torch.zeros_like(contrastive)
        terms = {"clip_loss": contrastive, "penalty_loss": weighted}
        terms["loss"] = contrastive + weighted
        terms["mi_lower_bound_nats"] = info_nce_nats(contrastive.detach(), len(image))
        return terms | {name: value.detach().to(contrastive) for name, value in reports.items()}

    def _cosines(self, image, text, labels):
        """Mean cosine of each modality's embeddings with the centres of its backward encoder."""
        if self.estimator in ("siblings", "prototype") and labels is None:
            raise ValueError(
                f"the estimator {self.estimator!r} compares rows that share a label: pass labels, equal for "
                "captions of one picture or pictures of one text"
            )
        if self.estimator == "siblings":
            image_centres, counted = sibling_means(image, labels)
            text_centres, _ = sibling_means(text, labels)
        elif self.estimator == "prototype":
            image_centres, counted = self.prototypes["image"](image, labels)
            text_centres, _ = self.prototypes["text"](text, labels)
        elif self.estimator == "crossfit":
            image_centres = crossfitted_means(text, image, labels)
            text_centres = crossfitted_means(image, text, labels)
            counted = None
        else:
            image_centres, text_centres, counted = text, image, None
        if self.stop_gradient:
            image_centres, text_centres = image_centres.detach(), text_centres.detach()
        cosines = {"image": (image * image_centres).sum(1), "text": (text * text_centres).sum(1)}
        if counted is not None and not counted.all():
            cosines = {side: each[counted] if counted.any() else each.detach() for side, each in cosines.items()}
        return {side: each.mean() for side, each in cosines.items()}

    def _sample(self, image, text, log_variances, generator):
        if log_variances is None:
            return (
                sample_vmf(image, self.kappa_e, generator),
                sample_vmf(text, self.kappa_e, generator),
            )
        device = image.device if generator is None else generator.device
        samples = []
        for mean, log_variance in zip((image, text), log_variances, strict=True):
            noise = torch.randn(mean.shape, generator=generator, device=device)
            samples.append(F.normalize(mean + torch.exp(log_variance / 2) * noise.to(mean), dim=1))
        return samples

    def _estimated_penalty(self, z_image, z_text, pooled, contrastive):
        shared = info_nce_nats(contrastive, len(z_image))
        residual = held_fixed(self.critics, {"image": z_image, "text": z_text}, pooled, shared)
        penalty = weigh(residual, self.text_weight)
        reports = {f"residual_{side}_nats": value for side, value in residual.items()}
        return penalty, reports | {"penalty_excess": penalty}

    def critic_loss(
        self,
        image_features: Float[Tensor, "n d"],
        text_features: Float[Tensor, "n d"],
        *,
        image_pooled: Float[Tensor, "n p"],
        text_pooled: Float[Tensor, "n q"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """What one step of the critics' own optimiser lowers; nothing flows back into the encoders.

        Args:
            image_features: unit vectors mu_v, [n, d].
            text_features: unit vectors mu_t, [n, d].
            image_pooled: features before the projection, [n, p].
            text_pooled: the same of the texts, [n, q].
            generator: source of the noise.

        Returns:
            Nats, a scalar with gradients to `critics.parameters()` alone.

        Raises:
            ValueError: an estimator without critics, or shapes that do not fit.
        """
        if self.critics is None:
            raise ValueError(f"the estimator {self.estimator!r} has no critics to train: it is a closed form")
        check_shapes(image_features, text_features, None, None)
        z = [full_precision(features.detach()) for features in (image_features, text_features)]
        if self.sample:
            z = self._sample(*z, None, generator)
        pooled = {"image": image_pooled, "text": text_pooled}
        return self.critics.loss({"image": z[0], "text": z[1]}, pooled)
