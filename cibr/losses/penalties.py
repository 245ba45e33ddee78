"""Penalties of `CIBRLoss` in closed form: von Mises-Fisher encoders at fixed concentrations, Gaussian ones.

Each returns the penalty, whose gradient trains, and what is reported beside it: upper bounds on information of
one modality only, and how far the penalty is above its least value.

Source: the bounds of Fischer (2020, arXiv 2002.05379) as `cibr.information` has them.
"""

from functools import lru_cache

from jaxtyping import Float
from torch import Tensor

from cibr.information import (
    gaussian_kl_nats,
    vmf_fit_kappa,
    vmf_floor_nats,
    vmf_log_normalizer,
    vmf_mean_cosine,
)
from cibr.losses.contrastive import check_finite, full_precision


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


def checked_log_variances(
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


def vmf_penalty(
    cosines: dict[str, Float[Tensor, ""]], dim: int, kappa_e: float, kappa_b: float, text_weight: float = 0.5
) -> tuple[Tensor, dict[str, Tensor]]:
    """kappa_b A_d(kappa_e) (1 - mean cosine) above the floor; reported at the kappa_b that fits.

    `cosines` has the mean cosine of each modality's embeddings with the centres of its backward encoder.
    """
    constants = _vmf_constants(kappa_e, kappa_b, dim)
    residuals = {side: _fitted_residual_nats(cosine, constants, dim) for side, cosine in cosines.items()}
    excess = constants["slope"] * (1 - weigh(cosines, text_weight))
    reports = {f"residual_{side}_nats": residual for side, residual in residuals.items()}
    return constants["floor"] + excess, reports | {"penalty_excess": excess}


def gaussian_penalty(
    image: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]],
    text: tuple[Float[Tensor, "n d"], Float[Tensor, "n d"]],
    text_weight: float = 0.5,
    stop_gradient: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted mean of both divergences, which are the upper bounds themselves; means and log variances."""

    def divergence(encoder, backward):
        backward = [part.detach() for part in backward] if stop_gradient else backward
        return gaussian_kl_nats(*encoder, *backward).mean()

    residuals = {"image": divergence(image, text), "text": divergence(text, image)}
    penalty = weigh(residuals, text_weight)
    return penalty, {f"residual_{side}_nats": value for side, value in residuals.items()} | {
        "penalty_excess": penalty
    }


def weigh(sides: dict[str, Tensor], text_weight: float) -> Tensor:
    """The mean over both modalities in which the text's has this weight."""
    return (1 - text_weight) * sides["image"] + text_weight * sides["text"]
