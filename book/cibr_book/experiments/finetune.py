"""One run of the fine-tuning study: train the start that knows names, and measure it.

experiments/finetune.md is the plan, and the sweeps experiments/finetune*.yaml name
`train_and_measure` as their work. As a program, this module adds what the runs kept of each photo
to the tables of the claims: `python -m cibr_book.experiments.finetune runs/finetune`.
"""

import copy
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from cibr import metrics
from cibr.data import Pairs
from cibr.losses import LossInputs
from cibr.losses.penalties import Crossfit
from cibr.metrics.zeroshot import accuracy_items
from cibr.models import DualEncoder
from cibr.models.inputs import Inputs, embed_pairs, prepare
from cibr.models.named_towers import FrozenTowers
from cibr.train import Training, configure
from cibr.utils import check_known
from cibr_book.embeddings.probes import leakage_items
from cibr_book.experiments import stages
from cibr_book.experiments.arms import AnchoredEncoder, pull_to_start
from cibr_book.experiments.hits import HITS_OF_RUN, Hits, packed, save_arrays
from cibr_book.experiments.photo_sets import SETS, owners, with_features, with_pictures
from cibr_book.experiments.tables import RESULTS
from cibr_book.experiments.twins import drawn

HITS = RESULTS / "finetune_hits.npz"
FIRST = RESULTS / "finetune_first.npz"
SHOWN_SEED = 1100  # whose runs keep the first five ids of every query
_SHIPPED = [name for name, of in SETS.items() if of.shipped and name != "train"]
_SUITES = {
    "validation": ["validation"],
    "curve": _SHIPPED,
    "claims": [name for name in SETS if name != "train"],
}
_OF_RUN = ("photos", "suites", "train_stages", "decay", "options")
_FIRST_OF_RUN = "first.npz"
_N_BINS = 3  # of brightness and of colour

Vectors = Float[Tensor, "n d"]


def train_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains one configuration and measures it.

    Args:
        settings: of `cibr.configure`, with the preset `some-photos` for the rest; also `photos`, to
            train on, a draw of the book's 3,000 by the seed; `train_stages`, of both towers;
            `options` of the loss; `decay`, towards the start's weights; and `suites`, what is
            measured: `validation`, for trials; `curve`, the shipped sets, probes and bounds; or
            `claims`, all sets.
        folder: where the hits of every query go, as bits.

    Returns:
        `<set>/<metric>` of the sets: recalls and accuracies in [0, 1], `pair_cosine_distance` and
        `modality_gap`; those of validation are `validation_<metric>`. With `curve` also `flickr8k/`
        `brightness` and `colour`, the shares of their entropy that probes read in embeddings of
        images, and `residual_image_nats` and `residual_text_nats`, upper bounds of `Crossfit`. And
        `training_seconds`.
    """
    check_known("suite", settings["suites"], _SUITES)
    setting = _setting(settings.get("train_stages", 0))
    start = time.monotonic()
    model = _trained(setting, settings)
    found = {"training_seconds": time.monotonic() - start}
    kept: dict[str, np.ndarray] = {}
    first: dict[str, np.ndarray] = {}
    for name in _SUITES[settings["suites"]]:
        pairs = setting.features_of(name, model)
        measured = _Measured(DualEncoder(_no_towers(pairs), model.head).eval(), pairs)
        prefix = "validation_" if name == "validation" else f"{name}/"
        found |= {f"{prefix}{metric}": value for metric, value in measured.scores().items()}
        kept[name] = packed(measured.hits)
        if not pairs.classnames:
            first |= {f"{name}/{way}": ids for way, ids in measured.first_five().items()}
        if name == "flickr8k" and settings["suites"] == "curve":
            found |= {f"{name}/{key}": x for key, x in _information(*measured.of_pairs()).items()}
    save_arrays(Path(folder) / HITS_OF_RUN, kept)
    if settings["suites"] == "claims" and settings["seed"] == SHOWN_SEED:
        save_arrays(Path(folder) / _FIRST_OF_RUN, first)
    return found


# The two settings


class _Frozen:
    """Towers that are frozen, whose features are known."""

    def start(self) -> DualEncoder:
        """A model at the start."""
        return DualEncoder.names()

    def training(self, n_photos: int, seed: int) -> Inputs:
        """A draw of training photos."""
        return prepare(self.start(), drawn(with_features("train"), n_photos, seed))

    def features_of(self, name: str, model: DualEncoder) -> Pairs:
        """A set with the features that the model's head reads."""
        return with_features(name)


class _Stages:
    """Towers whose last stages are trained, from activations of the frozen ones.

    Args:
        n_stages: of each tower.
    """

    def __init__(self, n_stages: int):
        self._whole = DualEncoder.names(train_stages=n_stages)
        self._rest = copy.deepcopy(self._whole)
        stages.keep_trained_stages(self._rest.towers)
        self._activations: dict[Any, Inputs] = {}

    def start(self) -> DualEncoder:
        """A model at the start, which reads activations."""
        return copy.deepcopy(self._rest)

    def training(self, n_photos: int, seed: int) -> Inputs:
        """A draw of training photos."""
        if (n_photos, seed) not in self._activations:
            pairs = drawn(with_pictures("train"), n_photos, seed)
            inputs = stages.training_inputs(stages.activations(self._whole, pairs))
            self._activations[n_photos, seed] = inputs
        return self._activations[n_photos, seed]

    def features_of(self, name: str, model: DualEncoder) -> Pairs:
        """A set with the features that the trained stages of the model have."""
        if name not in self._activations:
            self._activations[name] = stages.activations(self._whole, with_pictures(name))
        return stages.with_pooled(model, self._activations[name])


@cache
def _setting(n_stages: int) -> _Frozen | _Stages:
    return _Stages(n_stages) if n_stages else _Frozen()


def _trained(setting: _Frozen | _Stages, settings: dict[str, Any]) -> DualEncoder:
    """The start, fine-tuned; with no epochs, as it is."""
    if settings["epochs"] == 0:
        return setting.start()
    own = {name: value for name, value in settings.items() if name not in _OF_RUN}
    own["loss_options"] = settings.get("options", {})
    config = configure("some-photos", dataset="photos", model="names", cca=False, **own)
    model = setting.start()
    model.head.dropout.p = config.dropout
    model.set_temperature(config.temperature, learn=False)
    if config.penalty == "anchor":
        model = AnchoredEncoder(model)
    training = Training(model, config, setting.training(settings["photos"], config.seed))
    if "decay" in settings:
        pull_to_start(training.optimizer, settings["decay"])
    training.run()
    return model.eval()


def _no_towers(pairs: Pairs) -> FrozenTowers:
    """Towers that are never loaded: pairs bring their features along."""
    dims_pooled = pairs.features.images.shape[1], pairs.features.texts.shape[1]
    return FrozenTowers(*pairs.features.towers, dims_pooled=dims_pooled)


# Measures


class _Measured:
    """A model's embeddings of a set, and which queries it answers.

    Args:
        model: over frozen towers.
        pairs: with their features.

    Attributes:
        hits: of every query, by metric: `image_to_text_recall@k` and `text_to_image_recall@k`, or
            `accuracy@1`.
    """

    def __init__(self, model: DualEncoder, pairs: Pairs):
        self.pairs = pairs
        if pairs.classnames:
            prompts = pairs.prompts()
            texts = [text for of_class in prompts for text in of_class]
            self.images, texts = embed_pairs(model, prepare(model, pairs, texts=texts))
            self.texts = metrics.class_embeddings(texts.unflatten(0, (len(prompts), -1)))
            ranks = metrics.class_ranks(self.images, self.texts, pairs.labels)
            self.hits = {"accuracy@1": accuracy_items(ranks, pairs.labels)["accuracy@1"] > 0}
            return
        self.images, self.texts = embed_pairs(model, prepare(model, pairs))
        texts, text_to_image, labels = pairs.retrieval_targets()
        ranks = metrics.retrieval_ranks(self.images, self.texts, text_to_image, labels, texts)
        self.hits = {
            metric: hits.bool().numpy() for metric, hits in metrics.recall_hits(ranks).items()
        }

    def scores(self) -> dict[str, float]:
        """The share of hits by metric and, of pairs, their mean distance and the gap."""
        found = {metric: float(hits.mean()) for metric, hits in self.hits.items()}
        if self.pairs.classnames:
            return found
        images, texts = self.of_pairs()
        distance = 1 - (images * texts).sum(1).mean()
        gap = (images.mean(0) - texts.mean(0)).norm()
        return found | {"pair_cosine_distance": distance.item(), "modality_gap": gap.item()}

    def of_pairs(self) -> tuple[Vectors, Vectors]:
        """The embeddings of all pairs, an image once for each of its texts."""
        return self.images[self.pairs.text_to_image()], self.texts

    def first_five(self) -> dict[str, np.ndarray]:
        """The rows of the five nearest: of images, for each text, and of texts, for each image."""
        cosines = self.images @ self.texts.T
        nearest = {"search": cosines.T.topk(5), "text retrieval": cosines.topk(5)}
        return {way: of.indices.numpy().astype(np.uint16) for way, of in nearest.items()}


def _information(images: Vectors, texts: Vectors) -> dict[str, float]:
    """What probes read in embeddings of Flickr8k's test photos, and bounds in nats.

    Args:
        images: one row a pair, with five pairs a photo.
        texts: of the pairs.
    """
    images, texts = images[::5], texts[::5]
    # Half of the photos are for the test, and of the others three of ten choose the weight decay.
    rows = torch.arange(len(images))
    parts = torch.where(rows % 2 == 1, 2, torch.where(rows % 10 < 6, 0, 1))
    leaked = leakage_items(images, _factors(), parts)
    found = {name: items.mean().item() for name, items in leaked.items()}
    inputs = LossInputs(images, texts, images, texts, torch.tensor(1.0), kappa_e=None)
    return found | {name: x.item() for name, x in Crossfit().reports(inputs).items()}


@cache
def _factors() -> dict[str, Tensor]:
    """Brightness and colour of Flickr8k's test photos, each in three equal parts."""
    pixels = [np.asarray(image.resize((16, 16)), float) for image in _test_photos()]
    values = {
        "brightness": [x.mean() for x in pixels],
        "colour": [x.std(axis=2).mean() for x in pixels],
    }
    return {name: _thirds(pd.Series(x)) for name, x in values.items()}


def _test_photos() -> list:
    return [*with_pictures("flickr8k").images()]


def _thirds(values: pd.Series) -> Tensor:
    ranks = values.rank(method="first")
    return torch.from_numpy(pd.qcut(ranks, _N_BINS, labels=False).to_numpy(copy=True))


# What is kept of each photo


def collect(folder: Path) -> None:
    """Adds what runs in a folder kept to the tables: their hits, and of shown ones the first five
    ids of every query, under `<run>/<set>/<way>`.
    """
    hits = Hits.load(HITS)
    for file in sorted(folder.glob(f"*/{HITS_OF_RUN}")):
        for name, bits in _load(file).items():
            hits.bits.setdefault(name, {})[file.parent.name] = bits
    for name in hits.bits.keys() - hits.owners.keys():
        hits.owners[name] = owners(name).numpy()
    hits.save(HITS)
    first = _load(FIRST) if FIRST.exists() else {}
    for file in sorted(folder.glob(f"*/{_FIRST_OF_RUN}")):
        first |= {f"{file.parent.name}/{key}": ids for key, ids in _load(file).items()}
    save_arrays(FIRST, first)


def _load(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


if __name__ == "__main__":
    collect(Path(sys.argv[1]))
