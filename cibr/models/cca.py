"""Regularised CCA of two sets of features: the optimum of a linear CLIP on Gaussian features.

The covariances of the two sides get ridges, S_v = C_v + l_v (tr C_v / p) I and S_t likewise. The
singular value decomposition

    S_v^-1/2 C_vt S_t^-1/2 = U R V'

has the regularised canonical correlations on the diagonal of R. The embeddings of an image and of a
text are the directions of

    u_v = R^1/2 U' S_v^-1/2 (x_v - m_v),    u_t = R^1/2 V' S_t^-1/2 (x_t - m_t).

For Gaussian features <u_v, u_t> before normalisation is, up to the ridges, the bilinear score that
minimises CLIP's population loss in large batches (Theorem 2 of the book). Its directions are those
of a Gaussian information bottleneck between image and text, with other weights (Chechik et al.
2005, JMLR 6). They are a head that needs no training, which is summed with a trained one, and a
start for linear heads. `choose_ridges` finds l_v and l_t from the training pairs alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from cibr.models.heads import Head, SummedHead

RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # candidates of `choose_ridges`
_N_FOLDS = 5


class Moments(NamedTuple):
    """Covariances of paired features, float64.

    Args:
        image: C_v, [p, p].
        text: C_t, [q, q].
        cross: C_vt, [p, q].
    """

    image: Float64[Tensor, "p p"]
    text: Float64[Tensor, "q q"]
    cross: Float64[Tensor, "p q"]


class RegularisedCCA(Head):
    """Linear maps of pooled features into the space of their canonical correlations, from `fit`.

    Args:
        dim: dimension of the joint space.
        dim_image: p, dimension of the pooled features of images.
        dim_text: q, dimension of the pooled features of texts.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> image_pooled = torch.randn(100, 6, generator=generator)
        >>> text_pooled = image_pooled[:, :4] + torch.randn(100, 4, generator=generator)
        >>> cca = RegularisedCCA.fit(image_pooled, text_pooled, dim=4)
        >>> image_features = F.normalize(cca.project_images(image_pooled), dim=1)
        >>> text_features = F.normalize(cca.project_texts(text_pooled), dim=1)
        >>> bool((image_features * text_features).sum(1).mean() > 0.5)
        True
    """

    def __init__(self, dim: int, dim_image: int, dim_text: int):
        super().__init__(dim, dim_image, dim_text)
        self.image = nn.Linear(dim_image, dim)
        self.text = nn.Linear(dim_text, dim)

    @classmethod
    def fit(
        cls,
        image_pooled: Float[Tensor, "n p"],
        text_pooled: Float[Tensor, "n q"],
        dim: int,
        ridge_image: float = 3.0,
        ridge_text: float = 1.0,
    ) -> "RegularisedCCA":
        """Fits the CCA of paired features, in float64.

        Args:
            image_pooled: features of the images, [n, p]; an image is repeated for each of its
                texts.
            text_pooled: features of the texts, [n, q].
            dim: dimension of the joint space; directions beyond it are dropped.
            ridge_image: l_v, above 0, in units of the mean variance of an image feature; choose
                both on validation.
            ridge_text: l_t, in units of the mean variance of a text feature.

        Returns:
            The head with the fitted maps, float32.

        Raises:
            ValueError: features that are constant or not finite.
        """
        (image_mean, text_mean), moments = centred_moments(image_pooled.cpu(), text_pooled.cpu())
        _check_variance(moments)
        image_map, text_map = canonical_maps(moments, dim, ridge_image, ridge_text)
        cca = cls(dim, image_pooled.shape[1], text_pooled.shape[1])
        _set_centred_map(cca.image, image_map, image_mean)
        _set_centred_map(cca.text, text_map, text_mean)
        return cca


def with_cca(
    head: Head,
    image_pooled: Float[Tensor, "n p"],
    text_pooled: Float[Tensor, "n q"],
    *,
    ridge_image: float,
    ridge_text: float,
    cosine_weight: float = 1.0,
) -> SummedHead:
    """The sum of a head and of the CCA of its training pairs; the CCA has the head's width.

    Args:
        head: a trained head.
        image_pooled: features of the images, [n, p]; an image is repeated for each of its texts.
        text_pooled: features of the texts, [n, q].
        ridge_image: see `RegularisedCCA.fit`.
        ridge_text: see `RegularisedCCA.fit`.
        cosine_weight: of CCA's cosines; the head's have 1.
    """
    cca = RegularisedCCA.fit(image_pooled, text_pooled, head.dim, ridge_image, ridge_text)
    return SummedHead([head, cca], [1.0, cosine_weight])


def without_cca(head: Head) -> Head:
    """The head that `with_cca` was given, or the head itself if it is no such sum."""
    if isinstance(head, SummedHead) and isinstance(head.heads[-1], RegularisedCCA):
        return head.heads[0]
    return head


def _check_variance(moments: Moments) -> None:
    if not (moments.image.trace() > 0 and moments.text.trace() > 0):
        raise ValueError("image_pooled and text_pooled must be finite and vary over the pairs")


@torch.no_grad()
def _set_centred_map(
    linear: nn.Linear, matrix: Float64[Tensor, "dim p"], mean: Float64[Tensor, " p"]
) -> None:
    """Makes a linear layer compute matrix (x - mean)."""
    linear.weight.copy_(matrix)
    linear.bias.copy_(-linear.weight @ mean.float())


def centred_moments(
    image_pooled: Float[Tensor, "n p"], text_pooled: Float[Tensor, "n q"]
) -> tuple[tuple[Tensor, Tensor], Moments]:
    """First and second moments of paired features, in float64.

    Args:
        image_pooled: features of the images, [n, p].
        text_pooled: features of the texts, row by row, [n, q].

    Returns:
        The means m_v [p] and m_t [q], in one pair, and the covariances.
    """
    n = len(image_pooled)
    image = image_pooled.double()
    text = text_pooled.double()
    image_mean = image.mean(0)
    text_mean = text.mean(0)
    image = image - image_mean
    text = text - text_mean
    moments = Moments(image.T @ image / n, text.T @ text / n, cross=image.T @ text / n)
    return (image_mean, text_mean), moments


def canonical_maps(
    moments: Moments, dim: int, ridge_image: float, ridge_text: float
) -> tuple[Float64[Tensor, "dim p"], Float64[Tensor, "dim q"]]:
    """The maps R^1/2 U' S_v^-1/2 and R^1/2 V' S_t^-1/2 of the covariances, padded with zero rows
    to `dim`.

    Signs are fixed by making the largest entry of each direction of U positive.

    Args:
        moments: from `centred_moments`.
        dim: dimension of the joint space; directions beyond it are dropped.
        ridge_image: l_v, in units of the mean variance of an image feature.
        ridge_text: l_t, in units of the mean variance of a text feature.

    Returns:
        The maps of the images [dim, p] and of the texts [dim, q], float64.
    """
    whiten_image = _inverse_root(moments.image, ridge_image)
    whiten_text = _inverse_root(moments.text, ridge_text)
    whitened = whiten_image @ moments.cross @ whiten_text
    u, correlations, v_transposed = torch.linalg.svd(whitened, full_matrices=False)
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()  # [1, k], of the columns of U
    roots = correlations[:, None] ** 0.5
    image_map = roots * ((u * signs).T @ whiten_image)
    text_map = roots * ((signs.T * v_transposed) @ whiten_text)
    n_missing = max(0, dim - len(correlations))
    image_map = F.pad(image_map[:dim], (0, 0, 0, n_missing))
    text_map = F.pad(text_map[:dim], (0, 0, 0, n_missing))
    return image_map, text_map


def _inverse_root(covariance: Float64[Tensor, "p p"], ridge: float) -> Float64[Tensor, "p p"]:
    """S^-1/2 of S = C + ridge (tr C / p) I."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    return (vectors / (values + ridge * values.mean()).sqrt()) @ vectors.T


def choose_ridges(
    image_pooled: Float[Tensor, "n p"],
    text_pooled: Float[Tensor, "n q"],
    image_of_pair: Int[Tensor, " n"],
    ridges_image: Sequence[float] = RIDGES,
    ridges_text: Sequence[float] = RIDGES,
) -> tuple[float, float]:
    """The ridges with which the CCA of four fifths of the pairs scores the last fifth best.

    The score of a pair is <u_v, u_t> = x' M y before normalisation, M = S_v^-1 C_vt S_t^-1. At its
    best temperature its information in large batches is J = A^2 / (2 B) nats, where A is the mean
    score of pairs that match and B the mean square over all pairs (Proofs, "Few pairs"); ridges are
    chosen by the mean of J over the fifths. J needs no singular value decomposition, so a hundred
    pairs of ridges are compared in seconds.

    Args:
        image_pooled: features of the images, [n, p]; an image is repeated for each of its texts.
        text_pooled: features of the texts, [n, q].
        image_of_pair: a number for each image, which keeps its pairs in one fifth, [n].
        ridges_image: candidates for l_v, see `RegularisedCCA.fit`.
        ridges_text: candidates for l_t.

    Returns:
        The ridge for images and the ridge for texts.

    Raises:
        ValueError: features that are constant or not finite; fewer than ten images.
    """
    image_pooled, text_pooled = image_pooled.cpu(), text_pooled.cpu()
    _, whole = centred_moments(image_pooled, text_pooled)
    _check_variance(whole)
    information = torch.zeros(len(ridges_image), len(ridges_text), dtype=torch.float64)
    fold_of_pair = _folds(image_of_pair.cpu())
    for fold in range(_N_FOLDS):
        is_held_out = fold_of_pair == fold
        _, fitted = centred_moments(image_pooled[~is_held_out], text_pooled[~is_held_out])
        _, held_out = centred_moments(image_pooled[is_held_out], text_pooled[is_held_out])
        if _varies(fitted, whole) and _varies(held_out, whole):
            information += _information(fitted, held_out, ridges_image, ridges_text)
    best = (information == information.max()).nonzero()[-1]  # the largest ridges of equal ones
    return ridges_image[int(best[0])], ridges_text[int(best[1])]


def _varies(part: Moments, whole: Moments) -> bool:
    """Whether the features of both sides vary, by more than rounding, in a part of the pairs."""
    image_varies = part.image.trace() > 1e-9 * whole.image.trace()
    text_varies = part.text.trace() > 1e-9 * whole.text.trace()
    return bool(image_varies and text_varies)


def _folds(image_of_pair: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """A random fifth for each pair, the same for pairs of one image."""
    _, image = image_of_pair.unique(return_inverse=True)
    n_images = int(image.max()) + 1
    if n_images < 2 * _N_FOLDS:
        raise ValueError(
            f"CCA's ridges cannot be chosen from {n_images} images: give {2 * _N_FOLDS} or more, "
            "or cca_ridge_image and cca_ridge_text"
        )
    generator = torch.Generator().manual_seed(0)
    return (torch.randperm(n_images, generator=generator) % _N_FOLDS)[image]


def _information(
    fitted: Moments, held_out: Moments, ridges_image: Sequence[float], ridges_text: Sequence[float]
) -> Float64[Tensor, "a b"]:
    """J of held-out pairs for each pair of ridges, with CCA of other pairs' moments.

    In the eigenvectors of C_v and C_t, S_v^-1 and S_t^-1 are diagonal.
    """
    image_variances, image_basis = torch.linalg.eigh(fitted.image)
    text_variances, text_basis = torch.linalg.eigh(fitted.text)
    cross = image_basis.T @ fitted.cross @ text_basis
    image_held_out = image_basis.T @ held_out.image @ image_basis
    text_held_out = text_basis.T @ held_out.text @ text_basis
    cross_held_out = image_basis.T @ held_out.cross @ text_basis
    information = torch.zeros(len(ridges_image), len(ridges_text), dtype=torch.float64)
    for i, ridge_image in enumerate(ridges_image):
        scaled = cross / (image_variances + ridge_image * image_variances.mean())[:, None]
        scaled_by_image = scaled.T @ image_held_out @ scaled  # [q, q]; B = tr(M' C_v M C_t)
        for j, ridge_text in enumerate(ridges_text):
            scale = 1 / (text_variances + ridge_text * text_variances.mean())
            matching = ((scaled * scale) * cross_held_out).sum()  # A
            squares = (scale[:, None] * scaled_by_image * scale * text_held_out).sum()  # B
            information[i, j] = matching.clamp(min=0) ** 2 / (2 * squares)
    return information
