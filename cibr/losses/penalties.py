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
    image: Float[Tensor, "n d"], text: Float[Tensor, "n d"], kappa_e: float, kappa_b: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """kappa_b A_d(kappa_e) (1 - mean cosine) above the floor; reported at the kappa_b that fits."""
    dim = image.shape[1]
    constants = _vmf_constants(kappa_e, kappa_b, dim)
    cosine = (image * text).sum(1).mean()
    excess = constants["slope"] * (1 - cosine)
    residual = _fitted_residual_nats(cosine, constants, dim)
    reports = {
        "residual_image_nats": residual,
        "residual_text_nats": residual,
        "penalty_excess": excess,
    }
    return constants["floor"] + excess, reports


def gaussian_penalty(
    image: Float[Tensor, "n d"],
    text: Float[Tensor, "n d"],
    image_log_variance: Float[Tensor, "n d"],
    text_log_variance: Float[Tensor, "n d"],
) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean of both divergences, which are the upper bounds themselves."""
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
