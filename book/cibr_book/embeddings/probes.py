"""Probes: lower bounds on the information that an embedding contains about a known factor.

    I(Z;V) >= H(V) - E[-log q(v|z)]      for every q (Barber & Agakov 2003), tight for q = p(v|z)

For a factor of only one modality, the bound divided by the factor's entropy is the *leakage*.
"""

import warnings
from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

Features = Float[Tensor, "n d"]
Factor = Int[Tensor, " n"]
# The probes of `leakage_items`, with their strengths of weight decay.
_NETWORK = MLPClassifier((128,), learning_rate_init=2e-3, max_iter=20, random_state=0)
_READERS = [
    {"reader": [LogisticRegression(max_iter=300)], "reader__C": [0.03, 0.3, 3.0]},
    {"reader": [_NETWORK], "reader__alpha": [1.0, 5.0, 20.0]},
]


def leakage_items(
    embeddings: Features, factors: Mapping[str, Factor], parts: Factor
) -> dict[str, Float[Tensor, " m"]]:
    """Leakage of each factor, per test item, by the better of a logistic and a network probe.

    Source: Barber & Agakov (2003), eq. 3. The bound is specific to these probes: zero does not
    prove independence.

    Both read all dimensions, under several strengths of weight decay. The one with the highest
    log-likelihood of the tuning items is fitted again with them included, and then tested.

    Args:
        embeddings: vectors [n, d].
        factors: small integers by name, [n] each; each varies, and no value is of test items
            alone.
        parts: 0 for the items to fit, 1 to tune, 2 to test, [n].

    Returns:
        For each factor the gain in log-likelihood of each test item over the test frequencies,
        divided by their entropy [m]; the mean is the leakage.
    """
    known, tested = parts < 2, parts == 2
    folds = PredefinedSplit(torch.where(parts[known] == 1, 0, -1).numpy())
    probe = Pipeline([("scale", StandardScaler()), ("reader", LogisticRegression())])
    search = GridSearchCV(probe, _READERS, scoring="neg_log_loss", cv=folds)
    leakage = {}
    for name, factor in factors.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the network's epochs are few
            search.fit(embeddings[known].numpy(), factor[known].numpy())
        column = np.searchsorted(search.classes_, factor[tested].numpy())
        log_q = np.log(search.predict_proba(embeddings[tested].numpy()).clip(1e-12))
        log_p = np.log(np.bincount(column) / len(column))[column]
        gain = log_q[np.arange(len(column)), column] - log_p
        leakage[name] = torch.from_numpy(gain / -log_p.mean())
    return leakage


def factor_codes(table: pd.DataFrame) -> dict[str, Factor]:
    """The shared and image-only factors of glyphs as small integers.

    Args:
        table: `factors` of glyph pairs.

    Returns:
        `category`, which is shared with the name, those of fewer than 50 items merged as
        `other`; and the image-only
        `typeface, weight, slant, size, x, y, polarity`; size and offsets in three levels. Factors
        that do not vary are left out.
    """
    categories = table["category"]
    is_common = categories.map(categories.value_counts()) >= 50
    columns = {
        "category": categories.where(is_common, "other"),
        "typeface": table["typeface"],
        "weight": table["weight"],
        "slant": table["slant"],
        "size": pd.cut(table["size"], [0, 20, 24, 99], labels=False),
        "x": table["x"].clip(-1, 1),
        "y": table["y"].clip(-1, 1),
        "polarity": table["ink"] > table["paper"],
    }
    codes = {}
    for name, values in columns.items():
        code, _ = pd.factorize(np.asarray(values), sort=True)
        if code.max() > 0:
            codes[name] = torch.from_numpy(code)
    return codes
