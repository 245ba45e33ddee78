"""Self-training: unpaired photos and captions as additional training data for a few pairs.

Each unpaired photo is paired with its nearest caption under regularised CCA of frozen features, and
the heads train on these together with the true pairs (pseudo-labels, Lee 2013). A photo's own
captions are excluded: they would be missing in practice.
"""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from cibr.data import Pairs
from cibr.data.pairs import joined
from cibr.losses.cca import RegularisedCCA
from cibr.models import DualEncoder
from cibr.models.features import Inputs, prepare
from cibr.train.config import RunConfig
from cibr.train.trainer import fit_cca


def with_pseudo_pairs(
    model: DualEncoder, config: RunConfig, pairs: Pairs, unpaired: Pairs, repeats: int = 1
) -> tuple[Pairs, RegularisedCCA]:
    """The training data of self-training, and the CCA that finds them.

    Args:
        model: the model with the frozen towers.
        config: of the run; its `cca_ridges` are used.
        pairs: the true pairs.
        unpaired: images and texts, stored as pairs in any order; an image may have several texts.
            It is never given one of those that are stored with it, only an equal one of others.
        repeats: repetitions of each true pair per epoch.

    Returns:
        The true pairs and the images of `unpaired`, each with its nearest text under the CCA of the
        true pairs, all without labels and groups: equal texts match; and this CCA, to initialise
        the heads and serve as the statistic of the penalty `anchor`.

    Raises:
        ValueError: fewer than two unpaired images, or no repetition.
    """
    if len(unpaired) < 2 or repeats < 1:
        given = f"there are {len(unpaired)} unpaired images, and repeats is {repeats!r}"
        raise ValueError(f"{given}: give two images or more, and 1 or more")
    true, others = (prepare(model, part) for part in (pairs, unpaired))
    cca = fit_cca(true, model.dim, config.cca_ridges)
    return with_pseudo_inputs(true, others, cca, repeats).pairs, cca


def with_pseudo_inputs(
    train: Inputs, unpaired: Inputs, cca: RegularisedCCA, repeats: int
) -> Inputs:
    """The same from cached features, as `Inputs`."""
    nearest = _nearest(cca, unpaired)
    texts_of_all = unpaired.pairs.texts()
    found = replace(unpaired.pairs, captions=[[texts_of_all[i]] for i in nearest.tolist()])
    pairs = replace(joined([train.pairs] * repeats + [found]), groups=None)
    images = torch.cat([train.images] * repeats + [unpaired.images])
    texts = torch.cat([train.texts[0]] * repeats + [unpaired.texts[0][nearest]])
    labels = pairs.match_labels()[pairs.text_to_image()]
    return Inputs(pairs, images, (texts,), labels, train.preprocess)


def _nearest(cca: RegularisedCCA, inputs: Inputs) -> Int[Tensor, " n"]:
    """The nearest text of each image under a CCA, among the texts of all other images."""
    owner = inputs.pairs.text_to_image()
    vectors = cca.texts(inputs.texts[0])
    nearest = []
    for rows in torch.arange(len(inputs.pairs)).split(512):
        similarity = cca.images(inputs.images[rows]) @ vectors.T
        similarity[rows[:, None] == owner] = -torch.inf
        nearest.append(similarity.argmax(1))
    return torch.cat(nearest)
