"""Self-training: unpaired photos and captions as additional training data for a few pairs.

Each unpaired photo is paired with its nearest caption under regularised CCA of frozen features, and
the heads train on these together with the true pairs (pseudo-labels, Lee 2013). The unpaired data
are the pairs that a run leaves out of its training split; a photo's own captions are not among its
candidates, as they would not be in the wild.
"""

from dataclasses import replace

import torch

from cibr.data import Pairs, load_pairs
from cibr.losses.cca import RegularisedCCA
from cibr.models import DualEncoder
from cibr.models.features import Inputs, prepare
from cibr.train import RunConfig
from cibr.train.loop import fit_cca
from cibr_book.corruptions import Corruption, split_subset


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
    self_training: bool = False,
    repeats: int = 1,
) -> tuple[Pairs, RegularisedCCA]:
    """The training pairs of a run and their CCA, with the photos that the run leaves out as
    unpaired data.

    Args:
        model: the model with the frozen towers.
        config: of the run.
        corruption: keeps a fraction of the pairs.
        self_training: also train on the other photos, each with its nearest caption of
            another photo.
        repeats: repetitions of each true pair per epoch in self-training.

    Returns:
        The training pairs, and the CCA that initialises the heads and is the statistic of the
        penalty `anchor`.
    """
    whole = load_pairs(config.dataset, "train")
    kept, left = split_subset(whole, corruption, config.seed)
    cca = fit_cca(prepare(model, kept), model.dim, config.cca_ridges)
    if not self_training:
        return kept, cca
    row = {key: i for i, key in enumerate(whole.keys)}
    rows = torch.tensor([row[key] for key in kept.keys * repeats + left.keys])
    nearest = nearest_captions(cca, prepare(model, left))
    captions = kept.captions * repeats + [[text] for text in nearest]
    return replace(whole.subset(rows), captions=captions), cca
