"""Mutual information in nats: exact values where a world allows them, bounds and estimates elsewhere.

The encoders of CIB are noisy, z ~ e(z|x): for a deterministic encoder of continuous
data I(Z;X|Y) is infinite. For every backward encoder b,

    E[log e(z|x_v) - log b(z|x_t)] >= I(Z_v; X_v | X_t),

with equality when b = p(z|x_t): the conditional entropy bottleneck bound of Fischer
(2020, arXiv 2002.05379), used across views by Federici et al. (2020, arXiv
2002.07017). Here e and b are von Mises-Fisher or diagonal Gaussians (`vmf`, `bounds`).
`discrete` and `gaussian` are worlds where all is exact, `contrast` trains in them;
`scores`, `critics` and `estimators` hold what is estimated, `tasks` the samples to try
it on, `probes` what a linear reader finds.
"""

from cibr.information.bessel import log_bessel_i
from cibr.information.bounds import gaussian_kl_nats, info_nce_nats
from cibr.information.contrast import (
    discrete_contrast_rows,
    embedding_informations,
    gaussian_contrast_rows,
    train_discrete,
    train_gaussian,
)
from cibr.information.critics import GaussianConditional, JointCritic, MovingAverage, SeparableCritic
from cibr.information.discrete import (
    DiscreteWorld,
    backward_posterior,
    conditional_information_nats,
    discrete_residual_bound_nats,
    discrete_world,
    encoder_informations,
    entropy_nats,
    fit_tables,
    mutual_information_nats,
)
from cibr.information.estimators import (
    ESTIMATORS,
    Estimate,
    estimate_nats,
    estimate_rows,
    fit_critic,
    ksg_nats,
    read_nats,
)
from cibr.information.gaussian import (
    GaussianWorld,
    canonical_correlations,
    conditional_covariance,
    gaussian_information_nats,
    gaussian_world,
    information_of_correlations_nats,
    linear_encoder_nats,
    optimal_linear_encoder,
)
from cibr.information.intervals import mean_intervals
from cibr.information.probes import principal_components, probe_items, probe_nats
from cibr.information.scores import (
    club_nats,
    dv_nats,
    jsd_objective,
    mine_nats,
    nce_nats,
    nwj_nats,
    plug_in_nats,
    residual_bound_nats,
    smile_nats,
)
from cibr.information.tasks import (
    MAPS,
    Task,
    additive_noise_task,
    correlation_of,
    gaussian_log_ratio,
    gaussian_task,
    sparse_task,
    student_excess_nats,
    student_task,
)
from cibr.information.vmf import (
    sample_vmf,
    vmf_fit_kappa,
    vmf_floor_nats,
    vmf_log_normalizer,
    vmf_mean_cosine,
    vmf_residual_nats,
)

__all__ = [
    "ESTIMATORS",
    "MAPS",
    "DiscreteWorld",
    "Estimate",
    "GaussianConditional",
    "GaussianWorld",
    "JointCritic",
    "MovingAverage",
    "SeparableCritic",
    "Task",
    "additive_noise_task",
    "backward_posterior",
    "canonical_correlations",
    "club_nats",
    "conditional_covariance",
    "conditional_information_nats",
    "correlation_of",
    "discrete_contrast_rows",
    "discrete_residual_bound_nats",
    "discrete_world",
    "dv_nats",
    "embedding_informations",
    "encoder_informations",
    "entropy_nats",
    "estimate_nats",
    "estimate_rows",
    "fit_critic",
    "fit_tables",
    "gaussian_contrast_rows",
    "gaussian_information_nats",
    "gaussian_kl_nats",
    "gaussian_log_ratio",
    "gaussian_task",
    "gaussian_world",
    "info_nce_nats",
    "information_of_correlations_nats",
    "jsd_objective",
    "ksg_nats",
    "linear_encoder_nats",
    "log_bessel_i",
    "mean_intervals",
    "mine_nats",
    "mutual_information_nats",
    "nce_nats",
    "nwj_nats",
    "optimal_linear_encoder",
    "plug_in_nats",
    "principal_components",
    "probe_items",
    "probe_nats",
    "read_nats",
    "residual_bound_nats",
    "sample_vmf",
    "smile_nats",
    "sparse_task",
    "student_excess_nats",
    "student_task",
    "train_discrete",
    "train_gaussian",
    "vmf_fit_kappa",
    "vmf_floor_nats",
    "vmf_log_normalizer",
    "vmf_mean_cosine",
    "vmf_residual_nats",
]
