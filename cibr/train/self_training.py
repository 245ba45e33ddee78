"""Self-training: unpaired photos and captions as additional training data for a few pairs.

Each unpaired photo is paired with its nearest caption under regularised CCA of frozen features, and
the heads train on these together with the true pairs (pseudo-labels, Lee 2013). A photo's own
captions are not among its candidates, as they would not be in the wild.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from PIL import Image

from cibr.data import Pairs
from cibr.losses.cca import RegularisedCCA
from cibr.models import DualEncoder
from cibr.models.features import Inputs, prepare
from cibr.train.config import RunConfig
from cibr.train.trainer import fit_cca


def _nearest_captions(cca: RegularisedCCA, inputs: Inputs) -> list[str]:
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


def with_pseudo_pairs(
    model: DualEncoder, config: RunConfig, pairs: Pairs, unpaired: Pairs, repeats: int = 1
) -> tuple[Pairs, RegularisedCCA]:
    """The training data of self-training, and the CCA that finds them.

    Args:
        model: the model with the frozen towers.
        config: of the run; its `cca_ridges` are used.
        pairs: the true pairs.
        unpaired: images and texts, stored as pairs in any order; an image may have several texts.
            It is never given one of those that are stored with it.
        repeats: repetitions of each true pair per epoch.

    Returns:
        The true pairs and the images of `unpaired`, each with its nearest text under the CCA of the
        true pairs, all without labels and groups, so that equal texts match; and this CCA, which
        is to initialise the heads and to be the statistic of the penalty `anchor`.
    """
    cca = fit_cca(prepare(model, pairs), model.dim, config.cca_ridges)
    nearest = _nearest_captions(cca, prepare(model, unpaired))
    parts = [pairs] * repeats + [replace(unpaired, captions=[[text] for text in nearest])]
    together = Pairs(
        name=pairs.name,
        split=pairs.split,
        captions=[texts for part in parts for texts in part.captions],
        keys=[key for part in parts for key in part.keys],
        load=partial(_image, [(part, i) for part in parts for i in range(len(part))]),
    )
    return together, cca


def _image(sources: Sequence[tuple[Pairs, int]], i: int) -> Image.Image:
    part, row = sources[i]
    return part.image(row)
