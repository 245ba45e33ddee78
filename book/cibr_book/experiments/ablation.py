"""The ablation over beta: a run of ablation.yaml, and of clip-coco.yaml.

After a run of the study, the residual information of its embeddings is measured on test pairs,
which took no part in training.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from torch.nn import functional as F

from cibr.data import load_pairs
from cibr.losses.vmf import sample_vmf, vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats
from cibr.models import DualEncoder
from cibr.models.dual_encoder import Encoded
from cibr.models.inputs import Inputs, prepare
from cibr_book import intervals
from cibr_book.experiments import run
from cibr_book.experiments.confirmation import VALIDATION, means, measure_columns
from cibr_book.worlds.estimators import estimate_nats

KAPPAS = (8192, 512)  # concentrations of the noise with which information is measured
FORMS = ("vMF", "vMF, sampled", "cross-fitting", "MINE")
ZERO_SHOT = "zero-shot accuracy"
MEASURES = {
    "search": "text to image, Flickr8k",
    "naming": "image to text, Flickr8k",
    "search on coco-mini": "text to image, coco-mini",
    ZERO_SHOT: ZERO_SHOT,
    VALIDATION: VALIDATION,
}
SHOWN = ("search", "text retrieval", ZERO_SHOT, "residual information")
_RIDGES = np.logspace(-1, 5, 13)
_AT_ONCE = 1024  # pairs


def train_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """`cibr_book.experiments.run.train_and_measure`, and `residual_nats` of the trained model."""
    metrics = run.train_and_measure(settings, folder)
    place = settings["model"] if settings.get("untouched") else folder
    model = DualEncoder.from_pretrained(place).to("cuda" if torch.cuda.is_available() else "cpu")
    test = load_pairs(settings["dataset"], "test")
    if test.labels is not None:  # glyphs are in the order of their characters
        test = test.subset(torch.randperm(len(test), generator=torch.Generator().manual_seed(0)))
    test = prepare(model, test)
    return metrics | residual_nats(*first_pairs(model, test))


@torch.no_grad()
def first_pairs(model: DualEncoder, inputs: Inputs) -> tuple[Encoded, Encoded]:
    """Images and their first texts: unit vectors [n, d] and pooled features, on the CPU."""
    first = inputs.pairs.text_to_image().diff(prepend=torch.tensor([-1])).nonzero()[:, 0]
    sides: tuple[list, list] = ([], [])
    with model.evaluating():
        for rows in torch.arange(len(first)).split(_AT_ONCE):
            batch = inputs[rows, first[rows]]
            sides[0].append(model.encode_images(batch.images))
            sides[1].append(model.encode_texts(*batch.texts))
    image, text = (Encoded(*map(torch.cat, zip(*parts, strict=True))) for parts in sides)
    return Encoded(*(x.cpu() for x in image)), Encoded(*(x.cpu() for x in text))


def residual_nats(image: Encoded, text: Encoded) -> dict[str, float]:
    """Residual information of embeddings with vMF noise, by estimators fitted afterwards.

    Args:
        image: unit vectors and pooled features of test images, in pairs with the texts.
        text: of the texts.

    Returns:
        In nats, the mean of both modalities: `residual_bound_<kappa>`, see `residual_bound`;
        `residual_mine`, the paper's difference of two estimates, at the first of `KAPPAS`.
    """
    found = {f"residual_bound_{kappa}": residual_bound(image, text, kappa) for kappa in KAPPAS}
    found["residual_mine"] = 0.0
    for own, other in ((image, text), (text, image)):
        noisy = sample_vmf(own.features, KAPPAS[0], torch.Generator().manual_seed(0))
        told, shared = (estimate_nats(noisy, x.pooled, ["MINE"])["MINE"] for x in (own, other))
        found["residual_mine"] += (told - shared) / 2
    return found


def residual_bound(image: Encoded, text: Encoded, kappa: float | int = KAPPAS[0]) -> float:
    """An upper bound of the residual information of embeddings with vMF noise, in nats.

    The centre of the backward encoder is a ridge regression from the other modality's pooled
    features, fitted on the other half of the pairs.

    Args:
        image: unit vectors and pooled features of test images, in pairs with the texts.
        text: of the texts.
        kappa: concentration of the noise.

    Returns:
        The mean of both modalities.
    """
    found = 0.0
    for own, other in ((image, text), (text, image)):
        z, dim = own.features, own.features.shape[1]
        cosine = (z * _crossfitted(other.pooled, z)).sum(1).mean().double()
        kappa_b = vmf_fit_kappa(vmf_mean_cosine(kappa, dim) * cosine, dim)
        found += vmf_residual_nats(cosine, kappa, kappa_b, dim).item() / 2
    return found


def _crossfitted(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Directions of z predicted from x by a ridge regression on the other half of the rows."""
    halves = PredefinedSplit(np.arange(len(x)) % 2)
    predicted = cross_val_predict(RidgeCV(_RIDGES), x.numpy(), z.numpy(), cv=halves)
    return F.normalize(torch.from_numpy(predicted).to(z), dim=1)


def with_measures(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of photos in ablation.csv or moving.csv with `MEASURES`, in points."""
    columns = measure_columns()
    return rows.assign(**means(rows, {name: columns[of] for name, of in MEASURES.items()}))


def over_beta(rows: pd.DataFrame) -> pd.DataFrame:
    """Differences from CLIP along beta, with the names of the book's ablation.

    Args:
        rows: of one condition of photos in ablation.csv; the noise alone is left out.

    Returns:
        `measure, method, beta, mean, low, high`, over seeds: in points, and in nats of the bound.
    """
    rows = with_measures(rows).rename(columns={"naming": "text retrieval"})
    rows = rows.rename(columns={f"residual_bound_{KAPPAS[0]}": "residual information"})
    clip = rows[rows["method"] == "CLIP"].set_index("seed")
    own = rows[rows["method"].isin(FORMS)]
    parts = []
    for name in SHOWN:
        changed = own.assign(**{name: own[name] - own["seed"].map(clip[name])})
        found = intervals.mean_intervals(changed, ["method", "beta"], name)
        parts.append(found.assign(measure=name))
    return pd.concat(parts)


def claim_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/ablation.md, each number corrected apart.

    Args:
        rows: of ablation.csv, all of them.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in nats and in points, and the `beta` of
        a claim, which is named by `<form>: <condition>`.
    """
    claims: dict[str, list[tuple]] = {"residual": [], "search": [], ZERO_SHOT: []}
    betas = []
    bound = f"residual_bound_{KAPPAS[0]}"
    photos = with_measures(rows[rows["condition"].str.startswith("Flickr8k")])
    for condition, own in photos.groupby("condition", sort=False):
        by = own.set_index(["method", "beta", "seed"]).sort_index()
        clip = by.loc["CLIP"].droplevel("beta")
        for form in FORMS:
            of, at = by.loc[form], 3.0 if form == "MINE" else 0.2
            best = of[VALIDATION].groupby("beta").mean().idxmax()
            name, less = f"{form}: {condition}", clip[bound] - of.xs(at, level="beta")[bound]
            claims["residual"].append(("residual", name, less))
            for measure in ("search", ZERO_SHOT):
                gain = of.xs(best, level="beta")[measure] - clip[measure]
                claims[measure].append((measure, name, gain))
            betas.append([at, best, best])
    tests = pd.concat(map(intervals.outcomes, claims.values()), ignore_index=True)
    return tests.assign(beta=np.transpose(betas).ravel())
