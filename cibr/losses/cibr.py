"""CIBR: CLIP's loss plus what only one modality knows.

    L_CIBR = L_CLIP + beta * R,   R = (I(Z_v; X_v | X_t) + I(Z_t; X_t | X_v)) / 2

after Ji et al. (2025, arXiv 2503.24182), who published no code. R is replaced by the
upper bounds of `cibr.information`, so that minimising the sum is sound for every
backward encoder.
"""

import difflib
import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.information import (
    gaussian_kl_nats,
    info_nce_nats,
    sample_vmf,
    vmf_fit_kappa,
    vmf_floor_nats,
    vmf_log_normalizer,
    vmf_mean_cosine,
)
from cibr.losses.contrastive import Number, check_finite, check_shapes, clip_loss, full_precision

ESTIMATORS = ("vmf", "gaussian")


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


@lru_cache(maxsize=64)
def _vmf_constants(kappa_e: float, kappa_b: float, dim: int) -> dict[str, float]:
    """The parts of `vmf_residual_nats` that no step of training changes."""
    mean_cosine = vmf_mean_cosine(kappa_e, dim).item()
    return {
        "mean_cosine": mean_cosine,
        "entropy": vmf_log_normalizer(kappa_e, dim).item() + kappa_e * mean_cosine,
        "floor": vmf_floor_nats(kappa_e, kappa_b, dim).item(),
        "slope": kappa_b * mean_cosine,
    }


def _fitted_residual_nats(cosine: Tensor, constants: dict[str, float], dim: int) -> Tensor:
    """Mean of `vmf_residual_nats` at the kappa_b that makes it least, on the CPU."""
    agreement = constants["mean_cosine"] * cosine.detach().double().cpu().clamp(max=1.0)
    kappa_b = vmf_fit_kappa(agreement, dim)
    return constants["entropy"] - vmf_log_normalizer(kappa_b, dim) - kappa_b * agreement


def _checked_log_variances(
    features: Tensor, image_log_variance: Tensor | None, text_log_variance: Tensor | None
) -> tuple[Tensor, Tensor]:
    named = {"image_log_variance": image_log_variance, "text_log_variance": text_log_variance}
    for name, value in named.items():
        if value is None or value.shape != features.shape:
            got = "None" if value is None else list(value.shape)
            raise ValueError(
                f"{name} must be {list(features.shape)} like the features for the estimator "
                f"'gaussian', got {got}: let the encoder predict one log variance for each "
                "feature, or use the estimator 'vmf'"
            )
    check_finite(**named)
    return full_precision(image_log_variance), full_precision(text_log_variance)


class CIBRLoss(nn.Module):
    """CLIP's loss plus beta times an upper bound on what only one modality knows.

    With `vmf`, e(z|x_v) = vMF(mu_v, kappa_e) and b(z|x_t) = vMF(mu_t, kappa_b), and the
    same with v and t exchanged: the penalty is kappa_b A_d(kappa_e) (1 - cosine) plus a
    constant. With `gaussian`, e(z|x_v) = N(mu_v, diag exp(image_log_variance)) and
    b(z|x_t) = N(mu_t, diag exp(text_log_variance)); the sample is normalised before it
    is compared, which can only lose information, so the bound stays a bound.

    Source: the objective of Ji et al. (2025, arXiv 2503.24182), with the variational
    bounds of Fischer (2020, arXiv 2002.05379) where they use MINE.

    Args:
        beta: weight of the penalty, >= 0.
        estimator: one of `ESTIMATORS`.
        kappa_e: concentration of the encoders (vmf).
        kappa_b: concentration of the backward encoders in the penalty (vmf).
        sample: compare samples of e(z|x) rather than its means, in training and in
            evaluation alike: the noise is part of what the terms mean.

    Raises:
        ValueError: an unknown estimator, a beta that is negative or not finite, or a
            concentration that is not positive and finite.
    """

    def __init__(
        self,
        beta: Number,
        estimator: str = "vmf",
        kappa_e: Number = 1024.0,
        kappa_b: Number = 10.0,
        sample: bool = True,
    ):
        super().__init__()
        if estimator not in ESTIMATORS:
            near = difflib.get_close_matches(str(estimator), ESTIMATORS, n=1, cutoff=0.0)[0]
            raise ValueError(
                f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}: did you mean {near!r}?"
            )
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

    def extra_repr(self) -> str:
        return (
            f"beta={self.beta}, estimator={self.estimator!r}, kappa_e={self.kappa_e}, "
            f"kappa_b={self.kappa_b}, sample={self.sample}"
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
            image_pooled: features before the projection, [n, p]; for estimators with
                critics, unused by `vmf` and `gaussian`.
            text_pooled: the same of the texts, [n, q].
            beta: weight for this step, the module's own if None.
            generator: source of the noise, drawn for all n rows at once.

        Returns:
            Scalars. `clip_loss`; `penalty_loss`, beta times the penalty; `loss`, the
            sum of the two. Detached, in nats: `residual_image_nats` and
            `residual_text_nats`, the upper bounds on information of one modality only,
            for `vmf` at the kappa_b that fits the batch, not that of the penalty;
            `mi_lower_bound_nats`, log n - clip_loss, with labels a lower bound if image
            and text are conditionally independent given the label; `penalty_excess`,
            the penalty minus its value at cosine 1 (for `gaussian`, minus 0), which is
            no information.

        Raises:
            ValueError: as in `clip_loss`, for a beta that is negative or not finite,
                and for `gaussian` without log variances.
        """
        beta = self.beta if beta is None else _check_beta(beta)
        check_shapes(image_features, text_features, labels, None)
        image, text = full_precision(image_features), full_precision(text_features)
        log_variances = None
        if self.estimator == "gaussian":
            log_variances = _checked_log_variances(image, image_log_variance, text_log_variance)
        z_image, z_text = image, text
        if self.sample:
            z_image, z_text = self._sample(image, text, log_variances, generator)
        contrastive = clip_loss(z_image, z_text, logit_scale, labels)
        with torch.set_grad_enabled(beta > 0 and torch.is_grad_enabled()):
            if log_variances is None:
                penalty, reports = self._vmf_penalty(image, text)
            else:
                penalty, reports = self._gaussian_penalty(image, text, *log_variances)
            weighted = beta * penalty.to(contrastive) if beta else torch.zeros_like(contrastive)
        terms = {"clip_loss": contrastive, "penalty_loss": weighted}
        terms["loss"] = contrastive + weighted
        terms["mi_lower_bound_nats"] = info_nce_nats(contrastive.detach(), len(image))
        return terms | {name: value.detach().to(contrastive) for name, value in reports.items()}

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

    def _vmf_penalty(self, image: Tensor, text: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        dim = image.shape[1]
        constants = _vmf_constants(self.kappa_e, self.kappa_b, dim)
        cosine = (image * text).sum(1).mean()
        excess = constants["slope"] * (1 - cosine)
        residual = _fitted_residual_nats(cosine, constants, dim)
        reports = {
            "residual_image_nats": residual,
            "residual_text_nats": residual,
            "penalty_excess": excess,
        }
        return constants["floor"] + excess, reports

    def _gaussian_penalty(
        self, image: Tensor, text: Tensor, image_log_variance: Tensor, text_log_variance: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        forward = (image, image_log_variance, text, text_log_variance)
        residual_image = gaussian_kl_nats(*forward).mean()
        residual_text = gaussian_kl_nats(*forward[2:], *forward[:2]).mean()
        penalty = (residual_image + residual_text) / 2
        reports = {
            "residual_image_nats": residual_image,
            "residual_text_nats": residual_text,
            "penalty_excess": penalty,
        }
        return penalty, reports
