"""What a model's embeddings hold: geometry, bounds on information, and what a probe reads of each factor."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cibr.data import Pairs
from cibr.data.changes import half_in_look, in_both_looks, in_both_wordings
from cibr.information import info_nce_nats, principal_components, probe_nats
from cibr.inputs import embed_pairs, prepare
from cibr.losses import BaselineLoss, clip_loss
from cibr.metrics import alignment, linear_cka, modality_gap, mutual_knn, recall_at_k, uniformity
from cibr.models import DualEncoder

N_DESCRIBED = 1000  # pictures, the same number in training and validation, so that bounds and recalls compare
N_PROBED = 3000
FIXED_TEMPERATURE = 0.07  # for the bound: one ruler for all runs, whatever temperature they train at
N_BINS = 3


def describe_embeddings(model: DualEncoder, pairs: Pairs) -> dict[str, float]:
    """Geometry and information of at most `N_DESCRIBED` pairs, each picture with its first text.

    Returns:
        `alignment, uniformity_image, uniformity_text, modality_gap, linear_cka, mutual_knn` (see `cibr.metrics`);
        `one_text_recall@1`, the mean of both directions; in nats `mi_lower_bound_nats`, at one temperature for
        every model, and `residual_nats`, the upper bound of `vmf` at the concentration that fits.
    """
    images, texts = _embedded(model, _first_texts(_sample(pairs, N_DESCRIBED)))
    n = len(images)
    recalls = recall_at_k(images, texts, torch.arange(n), (1,))
    terms = BaselineLoss("cosine")(images, texts, 1.0)
    return {
        "alignment": alignment(images, texts),
        "uniformity_image": uniformity(images),
        "uniformity_text": uniformity(texts),
        "modality_gap": modality_gap(images, texts),
        "linear_cka": linear_cka(images, texts),
        "mutual_knn": mutual_knn(images, texts),
        "one_text_recall@1": sum(recalls.values()) / 2,
        "mi_lower_bound_nats": float(info_nce_nats(clip_loss(images, texts, 1 / FIXED_TEMPERATURE), n)),
        "residual_nats": float(terms["residual_image_nats"]),
    }


def leakage(model: DualEncoder, pairs: Pairs) -> dict[str, float]:
    """What a linear probe reads of each factor in the principal components, as a share of the factor's entropy.

    Args:
        model: the encoders.
        pairs: glyphs, whose factors are known; or photos, of which brightness, colourfulness and caption length
            stand for what one modality has alone, and whether people are spoken of for what both have.

    Returns:
        `leakage_image_<factor>`, `leakage_text_<factor>` for factors of one modality and
        `shared_image_<factor>`, `shared_text_<factor>` for those of both.
    """
    pairs = _first_texts(_sample(pairs, N_PROBED))
    sides = zip(("image", "text"), _embedded(model, pairs), strict=True)
    embedded = {side: principal_components(z) for side, z in sides}
    held_out = torch.arange(len(pairs)) % 2 == 1
    found = {}
    for kind, side, name, values in _factors(pairs):
        codes = torch.from_numpy(pd.factorize(np.asarray(values), sort=True)[0].astype(np.int64))
        for probed in ("image", "text") if side == "both" else (side,):
            found[f"{kind}_{probed}_{name}"] = _share_read(embedded[probed], codes, held_out)
    return found


def look_leakage(model: DualEncoder, pairs: Pairs, look: str) -> dict[str, float]:
    """`leakage_image_<look>`: what the probe reads of whether a picture is shown as it is or in another look.

    Both looks of a picture train the probe, or both test it.

    Args:
        model: the encoders.
        pairs: pictures as they are.
        look: one of `cibr.data.views.VIEWS`.
    """
    images, _ = _embedded(model, in_both_looks(_first_texts(_sample(pairs, N_PROBED // 2)), look))
    return {f"leakage_image_{look}": _second_half_read(images)}


def wording_leakage(model: DualEncoder, pairs: Pairs, wording: str) -> dict[str, float]:
    """`leakage_text_<wording>`: what it reads of whether a text is as it is or in one of `cibr.data.wordings`."""
    _, texts = _embedded(model, in_both_wordings(_first_texts(_sample(pairs, N_PROBED // 2)), wording))
    return {f"leakage_text_{wording}": _second_half_read(texts)}


def mixed_looks_recall(model: DualEncoder, pairs: Pairs, look: str) -> dict[str, float]:
    """Retrieval among pictures half of which, drawn without regard to their texts, are shown in another look.

    A bias that all pictures share moves none of them past another; among mixed looks it does.

    Args:
        model: the encoders.
        pairs: pictures as they are, with all their texts.
        look: one of `cibr.data.views.VIEWS`.

    Returns:
        `mixed_looks_image_to_text_recall@1`, `mixed_looks_text_to_image_recall@1`.
    """
    recalls = recall_at_k(*_embedded(model, half_in_look(pairs, look)), pairs.text_to_image(), (1,))
    return {f"mixed_looks_{name}": value for name, value in recalls.items()}


def _second_half_read(z: Tensor) -> float:
    """The share read of which half a row is in, where the halves show the same, row by row."""
    n = len(z) // 2
    row = torch.arange(2 * n)
    return _share_read(principal_components(z), (row >= n).long(), row % n % 2 == 1)


def _share_read(z: Tensor, codes: Tensor, held_out: Tensor) -> float:
    probe = probe_nats(z, codes, held_out)
    return probe["nats"] / probe["entropy_nats"]


def _factors(pairs: Pairs):
    """Kind (leakage or shared), the modality that has it, its name and its values."""
    if pairs.factors is not None:
        table = pairs.factors
        for name in ("typeface", "weight", "slant", "size", "x", "y"):
            yield "leakage", "image", name, table[name]
        yield "leakage", "image", "polarity", table["ink"] > table["paper"]
        yield "leakage", "text", "template", table["template"]
        yield "shared", "both", "category", table["category"].where(_often(table["category"]), "other")
        return
    pixels = [np.asarray(image.resize((16, 16)), dtype=float) for image in pairs.images()]
    yield "leakage", "image", "brightness", _bins([p.mean() for p in pixels])
    yield "leakage", "image", "colourfulness", _bins([p.std(axis=2).mean() for p in pixels])
    yield "leakage", "text", "length", _bins([len(texts[0].split()) for texts in pairs.captions])
    people = {"man", "woman", "boy", "girl", "people", "child", "men", "women", "boys", "girls", "children"}
    yield "shared", "both", "people", [bool(people & set(texts[0].lower().split())) for texts in pairs.captions]


def _often(values: pd.Series, least: int = 50) -> pd.Series:
    return values.map(values.value_counts()) >= least


def _bins(values: Sequence[int | float]) -> pd.Series:
    return pd.qcut(pd.Series(values).rank(method="first"), N_BINS, labels=False)


def _sample(pairs: Pairs, n: int) -> Pairs:
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return pairs.subset(order[:n])


def _first_texts(pairs: Pairs) -> Pairs:
    return replace(pairs, captions=[texts[:1] for texts in pairs.captions])


def _embedded(model: DualEncoder, pairs: Pairs) -> tuple[Tensor, Tensor]:
    return embed_pairs(model, prepare(model, pairs, truncate=True))
