"""What a probe finds: a lower bound on information about a factor that is known.

I(Z;V) >= H(V) - E[-log q(v|z)]      for every q (Barber & Agakov 2003), tightest for q = p(v|z)
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

N_COMPONENTS = 32  # that a probe reads: with more, it fits the noise of a few hundred pictures


def principal_components(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
    """The first principal components of embeddings, at most `N_COMPONENTS`: what a probe of few items reads."""
    components = min(N_COMPONENTS, *embeddings.shape)
    return torch.from_numpy(PCA(components, svd_solver="full").fit_transform(embeddings.numpy()))


def probe_nats(
    features: Float[Tensor, "n d"],
    factor: Int[Tensor, " n"],
    held_out: Tensor,
    dim_hidden: int = 0,
) -> dict[str, float]:
    """A probe's lower bound on I(Z;V), on samples that it was not fitted to.

    Source: Barber & Agakov (2003), eq. 3, with a multinomial logistic regression or a network of one hidden layer
    as q. H(V) is that of the held-out frequencies. The bound says what this reader can use: zero is no proof of
    independence.

    Args:
        features: z, [n, d]; standardised before the fit.
        factor: v as small integers, [n].
        held_out: which samples the probe is measured on, booleans [n].
        dim_hidden: width of the network's hidden layer, 0 for a linear probe.

    Returns:
        `nats`, the bound, below 0 where the probe is worse than the frequencies; `entropy_nats` H(V), its
        ceiling; `accuracy`.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a factor that does not vary, or a value
            that the fitted half lacks.
    """
    log_q, log_p, right = probe_items(features, factor, held_out, dim_hidden)
    return {
        "nats": float((log_q - log_p).mean()),
        "entropy_nats": float(-log_p.mean()),
        "accuracy": float(right.double().mean()),
    }


def probe_items(
    features: Float[Tensor, "n d"],
    factor: Int[Tensor, " n"],
    held_out: Tensor,
    dim_hidden: int = 0,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """What `probe_nats` is the mean of: one row a held-out sample, for intervals and paired differences.

    Args:
        features: as `probe_nats`.
        factor: as `probe_nats`.
        held_out: as `probe_nats`, m of them true.
        dim_hidden: as `probe_nats`.

    Returns:
        log q(v|z) of the probe and log p(v) of the held-out frequencies, in nats, and whether its first choice is
        right.

    Raises:
        ValueError: as `probe_nats`.
    """
    if len(features) != len(factor) or held_out.shape != factor.shape or held_out.dtype != torch.bool:
        raise ValueError(
            f"features, factor and held_out must have one row a sample and held_out be booleans, got "
            f"{list(features.shape)}, {list(factor.shape)} and {list(held_out.shape)} of {held_out.dtype}"
        )
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features must be finite, and some entries are NaN or infinite")
    seen, new = factor[~held_out].unique(), factor[held_out].unique()
    if len(seen) < 2 or not set(new.tolist()) <= set(seen.tolist()):
        raise ValueError(
            "the factor must take two values at least, and the fitted half must have all held-out ones"
        )
    reader = LogisticRegression(max_iter=300)
    if dim_hidden:
        # It stops when a tenth of the fitted half that it does not train on is no longer predicted better.
        reader = MLPClassifier(
            (dim_hidden,), alpha=1e-3, early_stopping=True, max_iter=200, random_state=0, learning_rate_init=2e-3
        )
    probe = make_pipeline(StandardScaler(), reader)
    probe.fit(features[~held_out].numpy(), factor[~held_out].numpy())
    log_q = np.log(probe.predict_proba(features[held_out].numpy()).clip(1e-12))
    truth = factor[held_out].numpy()
    column = np.searchsorted(probe.classes_, truth)
    log_p = np.log(np.bincount(column) / len(column))[column]
    right = probe.classes_[log_q.argmax(1)] == truth
    return torch.from_numpy(log_q[np.arange(len(truth)), column]), torch.from_numpy(log_p), torch.from_numpy(right)
