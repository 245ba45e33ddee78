"""Where the backward encoder b(z|x_t) of the penalty is centred: unit vectors, one a row, for each modality.

    paired     at the other modality's own embedding
    siblings   at the mean embedding of the other rows of the batch with the same label
    prototype  at the running mean of its label's embeddings in earlier batches
    crossfit   at what a ridge regression on the other half of the batch predicts from the other modality

Every one of them gives an upper bound E[log e(z|x_v) - log b(z|x_t)] >= I(Z_v;X_v|X_t). They differ in what a
finite sample can hide from them. Where every text is unique it names its image, and the paired bound falls to its
floor by memorising the pairs. A sibling is another draw from p(x_v|x_t), a prototype a mean of several, and a
prediction comes from other pairs: what only this sample has, none of them can know.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

DECAY = 0.8  # of a prototype, each time that its label comes up: about the last five
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


class Prototypes(nn.Module):
    """The running mean of each label's embeddings, which a batch is compared with before it moves them.

    Siblings from earlier batches: unlike `sibling_means`, it asks for no batch that holds several rows of a label.
    Source: an exponential moving average of what Snell et al. (2017, arXiv 1703.05175) call prototypes.

    Args:
        n_labels: labels are whole numbers from 0 to below this.
        dim: width of the embeddings.

    Raises:
        ValueError: fewer than two labels.
    """

    def __init__(self, n_labels: int, dim: int):
        super().__init__()
        if n_labels < 2:
            raise ValueError(f"n_labels is {n_labels}: prototypes are of two labels at least")
        self.register_buffer("means", torch.zeros(n_labels, dim))

    @torch.no_grad()
    def forward(
        self, features: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
    ) -> tuple[Float[Tensor, "n d"], Bool[Tensor, " n"]]:
        """The centre of each row, without a gradient; in training the means then take the batch in.

        Args:
            features: unit vectors, [n, d].
            labels: in [0, n_labels), [n].

        Returns:
            Unit vectors [n, d] and which rows' labels came up before, [n]; other rows keep their own vector.

        Raises:
            ValueError: a label outside the range.
        """
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(self.means):
            raise ValueError(
                f"labels go from {int(labels.min())} to {int(labels.max())}: prototypes were made for "
                f"n_labels={len(self.means)}, labels from 0 to {len(self.means) - 1}"
            )
        means = self.means[labels]
        known = means.norm(dim=1) > 0
        centres = torch.where(known[:, None], F.normalize(means, dim=1), features.to(means))
        if self.training:
            present, index, counts = torch.unique(labels, return_inverse=True, return_counts=True)
            sums = means.new_zeros(len(present), means.shape[1]).index_add(0, index, features.to(means))
            of_batch, old = sums / counts[:, None], self.means[present]
            first = old.norm(dim=1, keepdim=True) == 0
            self.means[present] = torch.where(first, of_batch, DECAY * old + (1 - DECAY) * of_batch)
        return centres, known


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
