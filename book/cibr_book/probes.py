"""Probes: lower bounds on the information that an embedding contains about a known factor.

    I(Z;V) >= H(V) - E[-log q(v|z)]      for every q (Barber & Agakov 2003), tight for q = p(v|z)

For a factor of only one modality, the bound divided by the factor's entropy is the *leakage*.
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

N_COMPONENTS = 32  # inputs of a probe: with more, it overfits a few hundred images


def principal_components(embeddings: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
    """The first principal components of embeddings, at most `N_COMPONENTS`, as inputs of a probe on
    few items.
    """
    components = min(N_COMPONENTS, *embeddings.shape)
    return torch.from_numpy(PCA(components, svd_solver="full").fit_transform(embeddings.numpy()))


def probe_nats(
    features: Float[Tensor, "n d"],
    factor: Int[Tensor, " n"],
    held_out: Bool[Tensor, " n"],
    dim_hidden: int = 0,
) -> dict[str, float]:
    """A probe's lower bound on I(Z;V), on held-out samples.

    Args:
        features: z, [n, d]; standardised before the fit.
        factor: v as small integers, [n].
        held_out: mask of the samples for evaluation, [n].
        dim_hidden: width of the network's hidden layer, 0 for a linear probe.

    Returns:
        `nats`, the bound, negative if the probe is worse than the class frequencies; `entropy_nats`
        H(V), its maximum; `accuracy`.

    Raises:
        ValueError: as `probe_items`.
    """
    log_q, log_p, correct = probe_items(features, factor, held_out, dim_hidden)
    means = {"nats": log_q - log_p, "entropy_nats": -log_p, "accuracy": correct.double()}
    return {name: float(values.mean()) for name, values in means.items()}


def probe_items(
    features: Float[Tensor, "n d"],
    factor: Int[Tensor, " n"],
    held_out: Bool[Tensor, " n"],
    dim_hidden: int = 0,
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"], Bool[Tensor, " m"]]:
    """The terms of `probe_nats` per held-out sample, for intervals and paired differences.

    Source: Barber & Agakov (2003), eq. 3, with a multinomial logistic regression or a network of
    one hidden layer as q. H(V) is that of the held-out frequencies. The bound is specific to this
    probe: zero does not prove independence.

    Args:
        features: z, [n, d]; standardised before the fit.
        factor: v as small integers, [n].
        held_out: mask of the samples for evaluation, [n], m of them true.
        dim_hidden: width of the network's hidden layer, 0 for a linear probe.

    Returns:
        log q(v|z) of the probe and log p(v) of the held-out frequencies, in nats, and whether its
        top prediction is correct, [m] each.

    Raises:
        ValueError: lengths that differ, features that are not finite, a factor that does not vary,
            or a value that the training samples lack.
    """
    if not len(features) == len(factor) == len(held_out) or not bool(
        torch.isfinite(features).all()
    ):
        got = f"got {list(features.shape)}, {list(factor.shape)} and {list(held_out.shape)}"
        raise ValueError(
            f"features must be finite, with one row for each value of factor and held_out, {got}"
        )
    seen, new = factor[~held_out].unique(), factor[held_out].unique()
    if len(seen) < 2 or not set(new.tolist()) <= set(seen.tolist()):
        raise ValueError(
            "the factor must take two values or more, and the fitted half have all held-out ones"
        )
    reader = LogisticRegression(max_iter=300)
    if dim_hidden:
        # Early stopping uses a tenth of the training samples.
        reader = MLPClassifier(
            (dim_hidden,),
            alpha=1e-3,
            early_stopping=True,
            max_iter=200,
            random_state=0,
            learning_rate_init=2e-3,
        )
    probe = make_pipeline(StandardScaler(), reader)
    probe.fit(features[~held_out].numpy(), factor[~held_out].numpy())
    log_q = np.log(probe.predict_proba(features[held_out].numpy()).clip(1e-12))
    truth = factor[held_out].numpy()
    column = np.searchsorted(probe.classes_, truth)
    log_p = np.log(np.bincount(column) / len(column))[column]
    correct = probe.classes_[log_q.argmax(1)] == truth
    return tuple(
        torch.from_numpy(values)
        for values in (log_q[np.arange(len(truth)), column], log_p, correct)
    )


def leakage_items(
    embeddings: Float[Tensor, "n d"], factors: dict[str, Int[Tensor, " n"]]
) -> dict[str, Float[Tensor, " m"]]:
    """Leakage of each factor by a linear probe, per held-out item, as a share of the factor's
    entropy.

    Every second item is held out; the inputs of the probe are the principal components.

    Args:
        embeddings: unit vectors [n, d].
        factors: small integers by name, [n] each.

    Returns:
        For each factor the gain of each held-out item over the class frequencies [m]; their mean is
        the leakage.
    """
    components = principal_components(embeddings)
    held_out = torch.arange(len(embeddings)) % 2 == 1
    found = {}
    for name, factor in factors.items():
        log_q, log_p, _ = probe_items(components, factor, held_out)
        found[name] = (log_q - log_p) / -log_p.mean()
    return found


def factor_codes(table: pd.DataFrame, least: int = 50) -> dict[str, Int[Tensor, " n"]]:
    """The shared and image-only factors of glyphs as small integers.

    Args:
        table: `factors` of glyph pairs.
        least: categories with fewer items are merged into `other`.

    Returns:
        `category`, which is shared with the name, and the image-only `typeface, weight, slant,
        size, x, y, polarity`; size and offsets in three levels. Factors that do not vary are left
        out.
    """
    common = table["category"].map(table["category"].value_counts()) >= least
    columns = {
        "category": table["category"].where(common, "other"),
        **{name: table[name] for name in ("typeface", "weight", "slant")},
        "size": pd.cut(table["size"], [0, 20, 24, 99], labels=False),
        **{name: table[name].clip(-1, 1) for name in ("x", "y")},
        "polarity": table["ink"] > table["paper"],
    }
    codes = {
        name: pd.factorize(np.asarray(values), sort=True)[0] for name, values in columns.items()
    }
    return {
        name: torch.from_numpy(code.astype(np.int64))
        for name, code in codes.items()
        if code.max() > 0
    }
