"""Probes: lower bounds on the information that an embedding contains about a known factor.

    I(Z;V) >= H(V) - E[-log q(v|z)]      for every q (Barber & Agakov 2003), tight for q = p(v|z)

For a factor of only one modality, the bound divided by the factor's entropy is the *leakage*.
"""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

Features = Float[Tensor, "n d"]
Factor = Int[Tensor, " n"]
Mask = Bool[Tensor, " n"]
# The probes of `leakage_items`, with their strengths of weight decay.
_NETWORK = dict(learning_rate_init=2e-3, max_iter=20, random_state=0)
_READERS = [
    {"reader": [LogisticRegression(max_iter=300)], "reader__C": [0.03, 0.3, 3.0]},
    {"reader": [MLPClassifier((128,), **_NETWORK)], "reader__alpha": [1.0, 5.0, 20.0]},
]


def principal_components(embeddings: Features, most: int = 32) -> Float[Tensor, "n c"]:
    """The first principal components of embeddings, as inputs of a probe on few items.

    Args:
        embeddings: vectors [n, d].
        most: number of components; with more than 32, a probe overfits a few hundred images.

    Returns:
        Components [n, c], c the smallest of n, d and `most`.
    """
    pca = PCA(min(most, *embeddings.shape), svd_solver="full")
    return torch.from_numpy(pca.fit_transform(embeddings.numpy()))


def probe_nats(features: Features, factor: Factor, held_out: Mask) -> dict[str, float]:
    """A linear probe's lower bound on I(Z;V), on held-out samples.

    Source: Barber & Agakov (2003), eq. 3, with a multinomial logistic regression as q. H(V) is that
    of the held-out frequencies. The bound is specific to this probe: zero does not prove
    independence.

    Args:
        features: z, [n, d]; standardised before the fit.
        factor: v as small integers, [n].
        held_out: mask of the samples for evaluation, [n].

    Returns:
        `nats`, the bound, negative if the probe is worse than the class frequencies; and
        `entropy_nats`, H(V), its maximum.

    Raises:
        ValueError: features that are not finite, a factor that does not vary, or a value that the
            training samples lack.
    """
    _check_values(factor[~held_out], factor[held_out])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    probe.fit(features[~held_out].numpy(), factor[~held_out].numpy())
    log_q, log_p = _tested_items(probe, features[held_out], factor[held_out])
    return {"nats": float((log_q - log_p).mean()), "entropy_nats": float(-log_p.mean())}


def _check_values(fitted: Factor, tested: Int[Tensor, " m"]) -> None:
    values = fitted.unique().tolist()
    if len(values) < 2 or not set(tested.tolist()) <= set(values):
        rule = "pass a factor with two values or more, all of them among the fitted items"
        raise ValueError(f"the fitted items have the values {values}: {rule}")


def _tested_items(
    probe: BaseEstimator, features: Features, factor: Factor
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """log q(v|z) of a fitted probe and log p(v) of the frequencies, in nats per item."""
    log_q = np.log(probe.predict_proba(features.numpy()).clip(1e-12))
    column = np.searchsorted(probe.classes_, factor.numpy())
    log_p = np.log(np.bincount(column) / len(column))[column]
    own = log_q[np.arange(len(column)), column]
    return torch.from_numpy(own), torch.from_numpy(log_p)


def parts_by_group(groups: Sequence[str], shares: Sequence[float], seed: int = 0) -> Factor:
    """A random part of the data for each item, with all items of a group in the same part.

    Args:
        groups: the group of each item, such as its character, [n].
        shares: the share of the groups in each part; they sum to 1.
        seed: of the choice.

    Returns:
        Parts 0, 1, ..., [n].
    """
    codes, names = pd.factorize(np.asarray(groups))
    places = np.random.default_rng(seed).permutation(len(names)) / len(names)
    return torch.from_numpy(np.searchsorted(np.cumsum(shares)[:-1], places, "right")[codes])


def leakage_items(
    embeddings: Features, factors: Mapping[str, Factor], parts: Factor
) -> dict[str, Float[Tensor, " m"]]:
    """Leakage of each factor, per test item, by the better of a logistic and a network probe.

    Both read all dimensions, under several strengths of weight decay. The one with the highest
    log-likelihood of the tuning items is fitted again with them included, and then tested.

    Args:
        embeddings: vectors [n, d].
        factors: small integers by name, [n] each.
        parts: 0 for the items to fit, 1 to tune, 2 to test, [n].

    Returns:
        For each factor the gain in log-likelihood of each test item over the test frequencies,
        divided by their entropy [m]; the mean is the leakage.

    Raises:
        ValueError: a factor that does not vary, or a value that only test items have.
    """
    known, tested = parts < 2, parts == 2
    folds = PredefinedSplit(torch.where(parts[known] == 1, 0, -1).numpy())
    probe = Pipeline([("scale", StandardScaler()), ("reader", LogisticRegression())])
    search = GridSearchCV(probe, _READERS, scoring="neg_log_loss", cv=folds)
    leakage = {}
    for name, factor in factors.items():
        _check_values(factor[known], factor[tested])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the network's epochs are few
            search.fit(embeddings[known].numpy(), factor[known].numpy())
        log_q, log_p = _tested_items(search, embeddings[tested], factor[tested])
        leakage[name] = (log_q - log_p) / -log_p.mean()
    return leakage


def factor_codes(table: pd.DataFrame) -> dict[str, Factor]:
    """The shared and image-only factors of glyphs as small integers.

    Args:
        table: `factors` of glyph pairs.

    Returns:
        `category`, which is shared with the name (see `common_categories`), and the image-only
        `typeface, weight, slant, size, x, y, polarity`; size and offsets in three levels. Factors
        that do not vary are left out.
    """
    columns = {
        "category": common_categories(table),
        "typeface": table["typeface"],
        "weight": table["weight"],
        "slant": table["slant"],
        "size": pd.cut(table["size"], [0, 20, 24, 99], labels=False),
        "x": table["x"].clip(-1, 1),
        "y": table["y"].clip(-1, 1),
        "polarity": table["ink"] > table["paper"],
    }
    return coded(columns)


def common_categories(table: pd.DataFrame) -> pd.Series:
    """The category of each glyph, with those of fewer than 50 items merged as `other`."""
    categories = table["category"]
    return categories.where(categories.map(categories.value_counts()) >= 50, "other")


def coded(columns: Mapping[str, Any]) -> dict[str, Factor]:
    """The values of each column as small integers, without columns that do not vary."""
    codes = {}
    for name, values in columns.items():
        code, _ = pd.factorize(np.asarray(values), sort=True)
        if code.max() > 0:
            codes[name] = torch.from_numpy(code)
    return codes
