"""Probes: lower bounds on the information that an embedding holds about a known factor.

    I(Z;V) >= H(V) - E[-log q(v|z)]      for every q (Barber & Agakov 2003), tightest for q = p(v|z)

A probe's value divided by the factor's entropy is the *leakage* where only one modality has the factor.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

N_COMPONENTS = 32  # that a probe reads: with more, it fits the noise of a few hundred images


def principal_components(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
    """The first principal components of embeddings, at most `N_COMPONENTS`: what a probe of few items reads."""
    components = min(N_COMPONENTS, *embeddings.shape)
    return torch.from_numpy(PCA(components, svd_solver="full").fit_transform(embeddings.numpy()))


def probe_nats(
    features: Float[Tensor, "n d"], factor: Int[Tensor, " n"], held_out: Bool[Tensor, " n"], dim_hidden: int = 0
) -> dict[str, float]:
    """A probe's lower bound on I(Z;V), on samples that it was not fitted to.

    Args:
        features: z, [n, d]; standardised before the fit.
        factor: v as small integers, [n].
        held_out: which samples the probe is measured on, [n].
        dim_hidden: width of the network's hidden layer, 0 for a linear probe.

    Returns:
        `nats`, the bound, below 0 where the probe is worse than the frequencies; `entropy_nats` H(V), its
        ceiling; `accuracy`.

    Raises:
        ValueError: as `probe_items`.
    """
    log_q, log_p, correct = probe_items(features, factor, held_out, dim_hidden)
    means = {"nats": log_q - log_p, "entropy_nats": -log_p, "accuracy": correct.double()}
    return {name: float(values.mean()) for name, values in means.items()}


def probe_items(
    features: Float[Tensor, "n d"], factor: Int[Tensor, " n"], held_out: Bool[Tensor, " n"], dim_hidden: int = 0
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """What `probe_nats` is the mean of: one row a held-out sample, for intervals and paired differences.

    Source: Barber & Agakov (2003), eq. 3, with a multinomial logistic regression or a network of one hidden layer
    as q. H(V) is that of the held-out frequencies. The bound says what this probe can read: zero does not prove
    independence.

    Args:
        features: z, [n, d]; standardised before the fit.
        factor: v as small integers, [n].
        held_out: which samples the probe is measured on, [n], m of them true.
        dim_hidden: width of the network's hidden layer, 0 for a linear probe.

    Returns:
        log q(v|z) of the probe and log p(v) of the held-out frequencies, in nats, and whether its first choice is
        right.

    Raises:
        ValueError: lengths that differ, values that are not finite, a factor that does not vary, or a value that
            the fitted half lacks.
    """
    if not len(features) == len(factor) == len(held_out) or not bool(torch.isfinite(features).all()):
        raise ValueError(
            f"features must be finite, with one row for each value of factor and held_out, got "
            f"{list(features.shape)}, {list(factor.shape)} and {list(held_out.shape)}"
        )
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
    correct = probe.classes_[log_q.argmax(1)] == truth
    return tuple(torch.from_numpy(values) for values in (log_q[np.arange(len(truth)), column], log_p, correct))


def leakage_items(
    embeddings: Float[Tensor, "n d"], factors: dict[str, Int[Tensor, " n"]]
) -> dict[str, Float[Tensor, " m"]]:
    """What a linear probe reads of each factor, item by item, as a share of the factor's entropy.

    Every second item is held out; the probe reads the principal components.

    Args:
        embeddings: unit vectors.
        factors: small integers by name.

    Returns:
        For each factor the gain of each held-out item over guessing by the frequencies; their mean is the leakage.
    """
    components = principal_components(embeddings)
    held_out = torch.arange(len(embeddings)) % 2 == 1
    found = {}
    for name, factor in factors.items():
        log_q, log_p, _ = probe_items(components, factor, held_out)
        found[name] = (log_q - log_p) / -log_p.mean()
    return found


def factor_codes(table: pd.DataFrame, least: int = 50) -> dict[str, Int[Tensor, " n"]]:
    """The factors of glyphs as small integers, shared and image-only.

    Args:
        table: `factors` of glyph pairs.
        least: categories with fewer items become one, `other`.

    Returns:
        `category`, which the name tells too, and `typeface, weight, slant, size, x, y, polarity`, which it does
        not; size and offsets in three levels. Factors that do not vary are left out.
    """
    common = table["category"].map(table["category"].value_counts()) >= least
    columns = {
        "category": table["category"].where(common, "other"),
        **{name: table[name] for name in ("typeface", "weight", "slant")},
        "size": pd.cut(table["size"], [0, 20, 24, 99], labels=False),
        **{name: table[name].clip(-1, 1) for name in ("x", "y")},
        "polarity": table["ink"] > table["paper"],
    }
    codes = {name: pd.factorize(np.asarray(values), sort=True)[0] for name, values in columns.items()}
    return {name: torch.from_numpy(code.astype(np.int64)) for name, code in codes.items() if code.max() > 0}
