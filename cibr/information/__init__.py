"""Mutual information in nats: closed forms, bounds and the noise they assume.

The encoders of CIB are noisy, z ~ e(z|x): for a deterministic encoder of continuous
data I(Z;X|Y) is infinite. For every backward encoder b,

    E[log e(z|x_v) - log b(z|x_t)] >= I(Z_v; X_v | X_t),

with equality when b = p(z|x_t): the conditional entropy bottleneck bound of Fischer
(2020, arXiv 2002.05379), used across views by Federici et al. (2020, arXiv
2002.07017). Here e and b are von Mises-Fisher or diagonal Gaussians.
"""

from cibr.information.bessel import log_bessel_i
from cibr.information.bounds import gaussian_kl_nats, info_nce_nats
from cibr.information.vmf import (
    sample_vmf,
    vmf_fit_kappa,
    vmf_floor_nats,
    vmf_log_normalizer,
    vmf_mean_cosine,
    vmf_residual_nats,
)

__all__ = [
    "gaussian_kl_nats",
    "info_nce_nats",
    "log_bessel_i",
    "sample_vmf",
    "vmf_fit_kappa",
    "vmf_floor_nats",
    "vmf_log_normalizer",
    "vmf_mean_cosine",
    "vmf_residual_nats",
]
