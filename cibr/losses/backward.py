"""Where the backward encoder b(z|x_t) of the penalty is centred: unit vectors, one a row, for each modality.

    paired     at the other modality's own embedding
    siblings   at the mean embedding of the other rows of the batch with the same label
    crossfit   at what a ridge regression on the other half of the batch predicts from the other modality

Every one of them gives an upper bound E[log e(z|x_v) - log b(z|x_t)] >= I(Z_v;X_v|X_t). They differ in what a
finite sample can hide from them. Where every text is unique it names its image, and the paired bound falls to its
floor by memorising the pairs. A sibling is another draw from p(x_v|x_t), and a prediction comes from other pairs:
what only this sample has, neither can know.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

RIDGE = 1.0  # times the mean eigenvalue of the unit vectors' second moment, 1 / d


def sibling_means(
    features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
) -> tuple[Float[Tensor, "n d"], Bool[Tensor, " n"]]:
    """For each row the direction of the mean of the other rows with its label.

    Source: for x_v' drawn from p(x_v|x_t) beside x_v, b(z|x_t) = E vMF(z; mu(x_v'), kappa_b) is a backward
    encoder, and by Jensen -log b is at most the mean of the siblings' own terms; the leave-one-out mean estimates
    the centre.

    Args:
        features: unit vectors, [n, d].
        labels: equal labels share what the other modality says, [n].

    Returns:
        Unit vectors [n, d] and which rows have a sibling, [n]; other rows keep their own vector.
    """
    _, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
    sums = features.new_zeros(len(counts), features.shape[1]).index_add(0, index, features)
    alone = counts[index] == 1
    others = torch.where(alone[:, None], features, sums[index] - features)
    return F.normalize(others, dim=1), ~alone


@torch.no_grad()
def crossfitted_means(
    source: Float[Tensor, "n d"], target: Float[Tensor, "n d"], labels: Int[Tensor, " n"] | None
) -> Float[Tensor, "n d"]:
    """For each row the direction that ridge regression on the other half of the batch predicts for its target.

    Rows with one label fall in one half, so that no row is predicted from its own label. Nothing flows back.

    Args:
        source: unit vectors of the other modality, [n, d].
        target: unit vectors to be predicted, [n, d].
        labels: as in `clip_loss`, [n]; None when all differ.

    Returns:
        Unit vectors, [n, d].
    """
    n, dim = source.shape
    index = torch.arange(n, device=source.device)
    if labels is not None:
        index = torch.unique(labels, return_inverse=True)[1]
    first = index % 2 == 0
    predicted = torch.empty_like(target)
    for half in (first, ~first):
        x, y = source[~half], target[~half]
        moment = x.T @ x + (RIDGE * max(len(x), 1) / dim) * torch.eye(dim, dtype=x.dtype, device=x.device)
        predicted[half] = source[half] @ torch.linalg.solve(moment, x.T @ y)
    return F.normalize(predicted, dim=1)
