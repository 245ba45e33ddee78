"""Regularised CCA of two sets of features: the optimum of a linear CLIP on Gaussian features.

With S_v = C_v + l_v (tr C_v / p) I, S_t likewise, and the decomposition S_v^-1/2 C_vt S_t^-1/2 = U
R V' into regularised canonical correlations R, the statistics are the directions of

    u_v = R^1/2 U' S_v^-1/2 (x_v - m_v),    u_t = R^1/2 V' S_t^-1/2 (x_t - m_t).

For Gaussian features <u_v, u_t> before normalisation is, up to the ridges, the bilinear score that
minimises CLIP's population loss in large batches (Theorem 2 of the book). Its directions are those
of a Gaussian information bottleneck between image and text, with other weights (Chechik et al.
2005, JMLR 6). They initialise projection heads and serve as a training-free model.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.losses.clip import Features

_Moments = tuple[Float64[Tensor, "p p"], Float64[Tensor, "q q"], Float64[Tensor, "p q"]]


class RegularisedCCA(nn.Module):
    """Fixed linear maps from pooled image and text features to unit vectors in a joint space.

    Args:
        image_mean: m_v, [p].
        text_mean: m_t, [q].
        image_map: R^1/2 U' S_v^-1/2, padded with zero rows to `dim`, [dim, p].
        text_map: the same for the texts, [dim, q].

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> image_pooled = torch.randn(100, 6, generator=generator)
        >>> text_pooled = image_pooled[:, :4] + torch.randn(100, 4, generator=generator)
        >>> cca = RegularisedCCA.fit(image_pooled, text_pooled, dim=4)
        >>> image_features, text_features = cca(image_pooled, text_pooled)
        >>> bool((image_features * text_features).sum(1).mean() > 0.5)
        True
    """

    def __init__(self, image_mean: Tensor, text_mean: Tensor, image_map: Tensor, text_map: Tensor):
        super().__init__()
        self.register_buffer("image_mean", image_mean.float())
        self.register_buffer("text_mean", text_mean.float())
        self.register_buffer("image_map", image_map.float())
        self.register_buffer("text_map", text_map.float())

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
            dim: width of the joint space; directions beyond it are dropped.
            ridge_image: l_v, above 0, in units of the mean variance of an image feature; choose
                both on validation.
            ridge_text: l_t, in units of the mean variance of a text feature.

        Returns:
            The module with the fitted means and maps.

        Raises:
            ValueError: features that are constant or not finite.
        """
        means, moments = centred_moments(image_pooled, text_pooled)
        if not (moments[0].trace() > 0 and moments[1].trace() > 0):
            raise ValueError("image_pooled and text_pooled must be finite and vary over the pairs")
        return cls(*means, *canonical_maps(moments, dim, ridge_image, ridge_text))

    def forward(self, image_pooled: Float[Tensor, "n p"], text_pooled: Float[Tensor, "n q"]):
        """Unit vectors of both sides, [n, dim] each, row by row."""
        return self.images(image_pooled), self.texts(text_pooled)

    def images(self, pooled: Float[Tensor, "n p"]) -> Features:
        """u_v of images, unit vectors [n, dim]."""
        return F.normalize((pooled - self.image_mean) @ self.image_map.T, dim=1)

    def texts(self, pooled: Float[Tensor, "m q"]) -> Float[Tensor, "m d"]:
        """u_t of texts, unit vectors [m, dim]."""
        return F.normalize((pooled - self.text_mean) @ self.text_map.T, dim=1)


def centred_moments(
    image_pooled: Float[Tensor, "n p"], text_pooled: Float[Tensor, "n q"]
) -> tuple[tuple[Tensor, Tensor], _Moments]:
    """First and second moments of paired features, in float64.

    Args:
        image_pooled: features of the images, [n, p].
        text_pooled: features of the texts, row by row, [n, q].

    Returns:
        The means m_v [p] and m_t [q], and the covariances C_v [p, p], C_t [q, q] and C_vt [p, q].
    """
    image, text = image_pooled.double(), text_pooled.double()
    means = image.mean(0), text.mean(0)
    n = len(image)
    image, text = image - means[0], text - means[1]
    return means, (image.T @ image / n, text.T @ text / n, image.T @ text / n)


def canonical_maps(
    moments: _Moments, dim: int, ridge_image: float, ridge_text: float
) -> tuple[Float64[Tensor, "dim p"], Float64[Tensor, "dim q"]]:
    """The maps R^1/2 U' S_v^-1/2 and R^1/2 V' S_t^-1/2 of the covariances, padded with zero rows
    to `dim`.

    Signs are fixed by making the largest entry of each direction of U positive.

    Args:
        moments: the covariances C_v, C_t and C_vt.
        dim: width of the joint space; directions beyond it are dropped.
        ridge_image: l_v, in units of the mean variance of an image feature.
        ridge_text: l_t, in units of the mean variance of a text feature.

    Returns:
        The maps of the images [dim, p] and of the texts [dim, q], float64.
    """
    image, text, cross = moments
    whiten = [_inverse_root(c, ridge) for c, ridge in ((image, ridge_image), (text, ridge_text))]
    u, correlations, v = torch.linalg.svd(whiten[0] @ cross @ whiten[1], full_matrices=False)
    signs = u.gather(0, u.abs().argmax(0, keepdim=True)).sign()
    weights = correlations[:, None] ** 0.5
    maps = weights * ((u * signs).T @ whiten[0]), weights * (signs.T * v @ whiten[1])
    return tuple(F.pad(side[:dim], (0, 0, 0, max(0, dim - len(side)))) for side in maps)


def _inverse_root(covariance: Float64[Tensor, "p p"], ridge: float) -> Float64[Tensor, "p p"]:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors / (values.clamp(min=0) + ridge * values.clamp(min=0).mean()).sqrt() @ vectors.T
