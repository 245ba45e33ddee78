"""The shape of a joint space with intervals: the gap between modalities, and what probes read of factors."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cibr.information import principal_components, probe_items
from cibr.metrics import modality_gap, uniformity


def effective_dimension(embeddings: Float[Tensor, "n d"]) -> float:
    """How many directions share the variance: (sum of eigenvalues)^2 / sum of squares, of the covariance.

    Returns:
        Between 1, all variance on a line, and d, the same in all directions.
    """
    centred = embeddings.double() - embeddings.double().mean(0)
    covariance = centred.T @ centred
    return (covariance.trace().square() / covariance.square().sum()).item()


def gap_share(image_embeddings: Float[Tensor, "n d"], text_embeddings: Float[Tensor, "m d"]) -> float:
    """The part of the gap between the means that lies where the embeddings vary, in the top directions of both.

    Source: the question of Zhang et al. (2023, arXiv 2302.04269): in CLIP the gap is orthogonal to
    the embeddings' span. Here the span is that of the directions with 90 % of the variance.

    Returns:
        A share of the squared length: 0 orthogonal, 1 within.
    """
    means = [side.double().mean(0) for side in (image_embeddings, text_embeddings)]
    centred = torch.cat(
        [side.double() - m for side, m in zip((image_embeddings, text_embeddings), means, strict=True)]
    )
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    share = values.flip(0).cumsum(0) / values.sum()
    top = vectors.flip(1)[:, : int((share < 0.9).sum()) + 1]
    gap = means[0] - means[1]
    return ((gap @ top).square().sum() / gap.square().sum()).item()


def closed_gap(
    image_embeddings: Float[Tensor, "n d"], text_embeddings: Float[Tensor, "m d"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Both sides moved to the mean between them, and back to unit length: the space without its gap.

    Source: Liang et al. (2022, arXiv 2203.02053), section 4.2, who move along the gap and look at zero-shot
    accuracy.
    """
    sides = [side - side.mean(0) for side in (image_embeddings, text_embeddings)]
    middle = (image_embeddings.mean(0) + text_embeddings.mean(0)) / 2
    return tuple(F.normalize(side + middle, dim=1) for side in sides)


def gap_table(image_embeddings: Float[Tensor, "n d"], text_embeddings: Float[Tensor, "n d"]) -> dict[str, float]:
    """The numbers of a joint space.

    Args:
        image_embeddings: unit vectors.
        text_embeddings: unit vectors, row by row the images' pairs.

    Returns:
        `paired_cosine` and `other_cosine`, means over pairs and over all others; `modality_gap`, the distance of
        the means; `gap_share`; `image_dimension` and `text_dimension`, effective; `image_uniformity` and
        `text_uniformity`.
    """
    n = len(image_embeddings)
    paired = (image_embeddings * text_embeddings).sum(1).double().sum()
    total = (image_embeddings.double().sum(0) * text_embeddings.double().sum(0)).sum()
    return {
        "paired_cosine": (paired / n).item(),
        "other_cosine": ((total - paired) / (n * (n - 1))).item(),
        "modality_gap": modality_gap(image_embeddings, text_embeddings),
        "gap_share": gap_share(image_embeddings, text_embeddings),
        "image_dimension": effective_dimension(image_embeddings),
        "text_dimension": effective_dimension(text_embeddings),
        "image_uniformity": uniformity(image_embeddings),
        "text_uniformity": uniformity(text_embeddings),
    }


def resampled(
    statistic: Callable[[Int[Tensor, " n"]], dict[str, float]],
    n: int,
    n_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Statistics of n items with intervals, by drawing half of the items without repeats and rescaling.

    A statistic of pairs of items, such as uniformity, is thrown off by the repeats of a bootstrap. Drawn without
    repeats, half of the items vary around the whole as the whole does around its source, in first order.

    Source: Politis, Romano and Wolf (1999), Subsampling. The variance of a mean over a half, drawn from n items
    without repeats, is sigma^2 / n: that of the mean over n independent items.

    Args:
        statistic: takes indices of items and gives numbers by name.
        n: how many items there are, 20 at least.
        n_resamples: how many halves.
        level: the share of halves between the ends, in (0, 1).
        seed: of the halves.

    Returns:
        `value, low, high`, one row a name.

    Raises:
        ValueError: too few items, or a level outside (0, 1).
    """
    if n < 20 or not 0 < level < 1:
        raise ValueError(f"n is {n} and level {level}: give 20 items at least, and a share between 0 and 1")
    value = pd.Series(statistic(torch.arange(n)))
    generator = torch.Generator().manual_seed(seed)
    halves = [statistic(torch.randperm(n, generator=generator)[: n // 2]) for _ in range(n_resamples)]
    away = pd.DataFrame(halves)[value.index]
    away = away - away.mean()  # some statistics, such as a probe's, depend on the number of items themselves
    tail = (1 - level) / 2
    return pd.DataFrame(
        {"value": value, "low": value + away.quantile(tail), "high": value + away.quantile(1 - tail)}
    )


def factor_information(
    embeddings: Float[Tensor, "n d"], factors: dict[str, Int[Tensor, " n"]]
) -> dict[str, tuple[Float[Tensor, " m"], float]]:
    """What a linear probe reads of each factor, item by item.

    Every second item is held out; the probe reads the principal components, as `cibr.sweep` does.

    Args:
        embeddings: unit vectors.
        factors: small integers by name.

    Returns:
        For each factor the share of its entropy that each held-out item gives (their mean is the leakage), and
        the probe's accuracy.
    """
    read = principal_components(embeddings)
    held_out = torch.arange(len(embeddings)) % 2 == 1
    found = {}
    for name, factor in factors.items():
        log_q, log_p, right = probe_items(read, factor, held_out)
        found[name] = ((log_q - log_p) / -log_p.mean(), right.double().mean().item())
    return found


def factor_codes(table: pd.DataFrame, least: int = 50) -> dict[str, Int[Tensor, " n"]]:
    """The factors of glyphs as small integers, shared and nuisance.

    Args:
        table: `factors` of glyph pairs.
        least: categories with fewer items are one, `other`.

    Returns:
        `category`, which the name tells too, and `typeface, weight, slant, size, x, y, polarity`, which it does
        not; `size` in three bins. Those without variation are left out.
    """
    common = table["category"].map(table["category"].value_counts()) >= least
    columns = {
        "category": table["category"].where(common, "other"),
        **{name: table[name] for name in ("typeface", "weight", "slant")},
        "size": pd.cut(table["size"], 3, labels=False) if table["size"].nunique() > 1 else table["size"],
        **{name: table[name] for name in ("x", "y")},
        "polarity": table["ink"] > table["paper"],
    }
    codes = {name: pd.factorize(np.asarray(values), sort=True)[0] for name, values in columns.items()}
    return {name: torch.from_numpy(code.astype(np.int64)) for name, code in codes.items() if code.max() > 0}
