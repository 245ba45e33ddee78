"""Unpaired photos and captions as additional training data for a few pairs.

Both uses are in the features of frozen towers. An EM estimate of the joint covariance of image and
text features takes the marginals from all photos and captions. Self-training pairs each photo with
its nearest caption under regularised CCA and trains on these together with the true pairs
(pseudo-labels, Lee 2013). The unpaired data are the pairs that a run leaves out of its training
split; a photo's own captions are not among its candidates, as they would not be in the wild.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from cibr.data import Pairs, load_pairs
from cibr.losses.cca import Moments, RegularisedCCA, canonical_maps, centred_moments
from cibr.models import DualEncoder
from cibr.models.features import Inputs, prepare
from cibr.train import RunConfig
from cibr.train.loop import fit_cca
from cibr_book.corruptions import Corruption, split_subset

_ROUNDS = 3  # of EM
Images = Float[Tensor, "m p"]
Texts = Float[Tensor, "k q"]


def em_moments(
    moments: Moments, n: int, images: Images, texts: Texts, ridges: tuple[float, float]
) -> Moments:
    """Covariances of a joint Gaussian from n pairs and unpaired features of both modalities, by EM.

    Args:
        moments: the covariances C_v, C_t, C_vt of the pairs.
        n: number of pairs.
        images: centred features of images without a text, [m, p].
        texts: centred features of texts without an image, [k, q].
        ridges: of the regressions between the modalities, in units of the mean variance.

    Returns:
        The covariances C_v [p, p], C_t [q, q] and C_vt [p, q], float64.
    """
    own_image, own_text, own_cross = moments
    image, text, cross = moments
    alone_image, alone_text = (x.double().T @ x.double() / len(x) for x in (images, texts))
    shares = torch.tensor([n, len(images), len(texts)], dtype=torch.float64)
    of_pairs, of_images, of_texts = (shares / shares.sum()).tolist()
    for _ in range(_ROUNDS):
        to_text = _regression(image, cross, ridges[0])
        to_image = _regression(text, cross.T, ridges[1])
        of_text = to_image @ alone_text @ to_image.T + image - to_image @ cross.T
        of_image = to_text @ alone_image @ to_text.T + text - to_text @ cross
        image = of_pairs * own_image + of_images * alone_image + of_texts * of_text
        text = of_pairs * own_text + of_texts * alone_text + of_images * of_image
        cross = of_pairs * own_cross + of_images * alone_image @ to_text.T
        cross = cross + of_texts * to_image @ alone_text
    return image, text, cross


def _regression(covariance: Tensor, cross: Tensor, ridge: float) -> Tensor:
    """C_yx (C_x + ridge * mean variance * I)^-1, which predicts y from x."""
    penalty = ridge * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
    return torch.linalg.solve(covariance + penalty, cross).T


def em_cca(paired: Inputs, alone: Inputs, config: RunConfig, dim: int) -> RegularisedCCA:
    """CCA from the covariances of `em_moments`, with the means of all images and of all texts."""
    (texts,) = paired.texts
    (texts_alone,) = alone.texts
    image_mean = torch.cat([paired.images, alone.images]).mean(0)
    text_mean = torch.cat([texts, texts_alone]).mean(0)
    ridges = config.cca_ridges
    _, moments = centred_moments(paired.images[paired.pairs.text_to_image()], texts)
    apart = alone.images - image_mean, texts_alone - text_mean
    moments = em_moments(moments, len(texts), *apart, ridges)
    return RegularisedCCA(image_mean, text_mean, *canonical_maps(moments, dim, *ridges))


def nearest_captions(cca: RegularisedCCA, inputs: Inputs) -> list[str]:
    """The nearest text of each image under a CCA, among the texts of all other images."""
    texts = inputs.pairs.texts()
    owner = inputs.pairs.text_to_image()
    vectors = cca.texts(inputs.texts[0])
    nearest = []
    for rows in torch.arange(len(inputs.pairs)).split(512):
        similarity = cca.images(inputs.images[rows]) @ vectors.T
        similarity[rows[:, None] == owner] = -torch.inf
        nearest.append(similarity.argmax(1))
    return [texts[i] for i in torch.cat(nearest).tolist()]


def with_unpaired(
    model: DualEncoder,
    config: RunConfig,
    corruption: Corruption,
    em: bool = False,
    self_training: bool = False,
    repeats: int = 1,
) -> tuple[Pairs, RegularisedCCA]:
    """The training pairs of a run and their CCA, with the pairs that it leaves out used as unpaired
    data.

    Args:
        model: the model with the frozen towers.
        config: of the run.
        corruption: keeps a fraction of the pairs.
        em: estimate the covariances from all features instead of from the pairs only.
        self_training: also train on the other photos, each with its nearest caption of
            another photo.
        repeats: repetitions of each true pair per epoch in self-training.

    Returns:
        The training pairs, and the CCA that initialises the heads and is the statistic of the
        penalty `anchor`.
    """
    whole = load_pairs(config.dataset, "train")
    kept, left = split_subset(whole, corruption, config.seed)
    paired = prepare(model, kept)
    alone = prepare(model, left)
    if em:
        cca = em_cca(paired, alone, config, model.dim)
    else:
        cca = fit_cca(paired, model.dim, config.cca_ridges)
    if not self_training:
        return kept, cca
    row = {key: i for i, key in enumerate(whole.keys)}
    rows = torch.tensor([row[key] for key in kept.keys * repeats + left.keys])
    captions = kept.captions * repeats + [[text] for text in nearest_captions(cca, alone)]
    return replace(whole.subset(rows), captions=captions), cca
