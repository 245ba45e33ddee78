"""Photos, predicted from a spectrum: a run of experiments/spectrum-*.yaml and gains*.yaml.

The canonical correlations of a draw's features, with ridges, give gains by theorem 3 or by the loss
of Gaussian pairs (`cibr_book.worlds.threshold`), and these give heads in closed form. Beside them
linear heads are trained: Gaussian noise on their inputs, of the ridges' variance, is the ridge of
the covariances.
"""

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.cca import canonical_maps, centred_moments
from cibr.models.inputs import Inputs, embed_pairs
from cibr_book.experiments import recipes
from cibr_book.experiments.corruptions import Corruption, corrupt
from cibr_book.worlds.threshold import fixed_length_gains, loss_gains

DIM = 256  # directions, and the width of trained heads
POINT = ["photos", "temperature", "beta", "batch_size", "measure"]  # of the photo curve
WAYS = {"text_to_image": "search", "image_to_text": "text retrieval"}
_RATE = 1e-3
_SHOWN = (2, 4, 7, 11, 21, 41)  # directions whose gain over the first is reported
Sides = list[Float64[Tensor, "_ _"]]  # of images and texts
Maps = list[Float[Tensor, "d _"]]
Embeddings = Sequence[Float[Tensor, "_ d"]]


class Spectrum:
    """The regularised canonical directions of pairs.

    Args:
        pairs: cached features of the training pairs.
        ridges: of images and texts, in units of the mean variance of a feature.

    Attributes:
        rho: the regularised correlations of the first `DIM` directions.
    """

    def __init__(self, pairs: Inputs, ridges: tuple[float, float]):
        images, texts = pairs.images[pairs.pairs.text_to_image()], pairs.texts[0]
        self.means, moments = centred_moments(images, texts)
        maps = canonical_maps(moments, DIM, *ridges)
        self.rho = (maps[0] @ moments.cross * maps[1]).sum(1).clamp(min=1e-12).sqrt()
        self.maps: Sides = [side / self.rho.sqrt()[:, None] for side in maps]
        self.deviations, self.inverses = [], []
        for side, ridge, to_canonical in zip(moments[:2], ridges, self.maps, strict=True):
            variance = ridge * side.trace() / len(side)
            self.deviations.append(float(variance.sqrt()))
            whole = side + variance * torch.eye(len(side))
            self.inverses.append(whole @ to_canonical.T)

    def heads(self, gains: Float64[Tensor, " d"]) -> Maps:
        """The maps whose score has these gains."""
        return [(gains.sqrt()[:, None] * side).float() for side in self.maps]

    def gains(self, heads: Maps) -> Float64[Tensor, "d d"]:
        """The score of heads in the canonical directions of both sides."""
        image, text = (h.double() @ i for h, i in zip(heads, self.inverses, strict=True))
        return image.T @ text

    def embeddings(self, heads: Maps, pairs: Inputs) -> Embeddings:
        """Unit vectors of the images and of the texts."""
        sides = zip((pairs.images, pairs.texts[0]), self.means, heads, strict=True)
        return [F.normalize((x - mean.float()) @ head.T, dim=1) for x, mean, head in sides]


def direction_recalls(embeddings: Embeddings, pairs: Inputs) -> dict[str, float]:
    """Recalls of unit vectors of pairs, and their means over each direction."""
    found = retrieval_recalls(*embeddings, *pairs.pairs.retrieval_targets())
    for way in ("image_to_text", "text_to_image"):
        own = [value for name, value in found.items() if name.startswith(way)]
        found[f"{way}_mean"] = sum(own) / len(own)
    return found


def predicted_recalls(
    train: Inputs,
    test: Inputs,
    ridges: tuple[float, float],
    temperature: float,
    betas: Iterable[float],
    batch_size: int,
) -> dict[float, dict[str, float]]:
    """What linear heads recall whose gains minimise the loss for the correlations of features.

    Args:
        train: cached features of the training pairs.
        test: of test pairs.
        ridges: of `Spectrum`.
        temperature: of the softmax.
        betas: weights of the penalty.
        batch_size: pairs in a batch.

    Returns:
        By beta those of `direction_recalls`.
    """
    spectrum, found = Spectrum(train, ridges), {}
    for beta in betas:
        gains = loss_gains(spectrum.rho, temperature, beta, batch_size)
        embeddings = spectrum.embeddings(spectrum.heads(gains), test)
        found[beta] = direction_recalls(embeddings, test)
    return found


def train_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Heads of a draw of Flickr8k's training photos, predicted, trained, or the study's.

    Args:
        settings: `photos`, their number; `seed`, of the draw, the order, the captions and the
            noise. For heads on canonical directions `ridges` and `gains`: `limit`, `loss` or
            `trained`, with `temperature` and `dose`, which is the penalty's beta, and for the last
            two `batch_size`, for the last `steps`; or `power`, with the `power` of the
            correlations. For the study's heads, `heads`, their settings; scores of both are summed.
        folder: unused: heads are small enough to make again.

    Returns:
        `validation_*` and `flickr8k/*`, `coco/*`: recalls and their means by direction. For heads
        on canonical directions `gain@k`, of direction k over the first; and `diagonal`, the share
        of the squared score that is on the diagonal, 1 for predictions.
    """
    whole, n_photos, seed = recipes.features()[1], settings["photos"], settings["seed"]
    drawn = Corruption(fraction=n_photos / len(whole["train"].pairs), redraw=True)
    found, parts = {}, []
    if "gains" in settings:
        pairs, spectrum = _drawn(drawn, seed, tuple(settings["ridges"]))
        heads = _heads(spectrum, pairs, settings)
        gains = spectrum.gains(heads)
        own = gains.diagonal()
        found = {f"gain@{k}": float(own[k - 1] / own[0]) for k in _SHOWN if k <= len(own)}
        found["diagonal"] = float(own.square().sum() / gains.square().sum())
        parts.append(partial(spectrum.embeddings, heads))
    if "heads" in settings:
        own = _study_heads(drawn, seed, json.dumps(settings["heads"], sort_keys=True))
        parts.append(partial(embed_pairs, own))
    columns = {"validation": "validation_", "flickr8k": "flickr8k/", "coco": "coco/"}
    for test, start in columns.items():
        of_parts = [part(whole[test]) for part in parts]
        summed = [torch.cat(side, 1) / len(parts) ** 0.5 for side in zip(*of_parts, strict=True)]
        recalls = direction_recalls(summed, whole[test])
        found |= {f"{start}{name}": value for name, value in recalls.items()}
    return found


def _heads(spectrum: Spectrum, pairs: Inputs, settings: dict[str, Any]) -> Maps:
    """Linear heads, by what `gains` says."""
    kind, seed = settings["gains"], settings["seed"]
    if kind == "power":
        return spectrum.heads(spectrum.rho ** settings["power"])
    point = settings["temperature"], settings["dose"]
    if kind == "limit":
        return spectrum.heads(fixed_length_gains(spectrum.rho, *point))
    if kind == "loss":
        return spectrum.heads(loss_gains(spectrum.rho, *point, settings["batch_size"], seed))
    return _trained(spectrum, pairs, *point, settings["batch_size"], settings["steps"], seed)


@lru_cache(maxsize=2)  # for sums that differ in what is added alone
def _study_heads(drawn: Corruption, seed: int, settings: str) -> DualEncoder:
    from cibr_book.experiments.training import trained_heads  # late: it takes seconds

    base, whole = recipes.features()
    pairs = recipes.picked(whole["train"], corrupt(whole["train"].pairs, drawn, seed))
    return trained_heads(base, pairs, json.loads(settings), seed)


@lru_cache(maxsize=1)  # for runs that differ in temperature, beta and batch alone
def _drawn(drawn: Corruption, seed: int, ridges: tuple[float, float]) -> tuple[Inputs, Spectrum]:
    whole = recipes.features()[1]["train"]
    pairs = recipes.picked(whole, corrupt(whole.pairs, drawn, seed))
    return pairs, Spectrum(pairs, ridges)


def _trained(
    spectrum: Spectrum,
    pairs: Inputs,
    temperature: float,
    beta: float,
    batch_size: int,
    n_steps: int,
    seed: int,
) -> Maps:
    """Linear heads by Adam and a one-cycle rate, with noise on their inputs."""
    from cibr.train.loop import epoch_rows  # late, too

    generator = torch.Generator().manual_seed(seed)
    inputs = [
        x - m.float() for x, m in zip((pairs.images, pairs.texts[0]), spectrum.means, strict=True)
    ]
    widths = [x.shape[1] for x in inputs]
    heads = [torch.randn(DIM, n, generator=generator) / n**0.5 for n in widths]
    descent = torch.optim.Adam([head.requires_grad_() for head in heads], lr=_RATE)
    cycle = torch.optim.lr_scheduler.OneCycleLR(descent, _RATE, n_steps, cycle_momentum=False)
    loss_fn = CIBRLoss(beta)
    per_epoch = len(pairs.pairs) // batch_size
    for step in range(n_steps):
        if step % per_epoch == 0:
            order = epoch_rows(pairs.pairs, seed, step // per_epoch)
        start = step % per_epoch * batch_size
        rows = [side[start : start + batch_size] for side in order]
        sides = []
        for x, row, head, deviation in zip(inputs, rows, heads, spectrum.deviations, strict=True):
            noisy = x[row] + deviation * torch.randn(batch_size, x.shape[1], generator=generator)
            sides.append(F.normalize(noisy @ head.T, dim=1))
        descent.zero_grad()
        loss_fn(*sides, 1 / temperature, pairs.labels[rows[1]], output_dict=False).backward()
        descent.step()
        cycle.step()
    return [head.detach() for head in heads]


def curve(rows: pd.DataFrame, test: str = "flickr8k") -> pd.DataFrame:
    """Recalls of experiments/spectrum.md, predicted and trained on the same draws.

    Args:
        rows: of spectrum.csv; others than those of spectrum-predicted.yaml and -trained.yaml are
            left out.
        test: the photos, `flickr8k` or `coco`.

    Returns:
        A row by `POINT` and `seed`, of points that were trained: `limit`, `loss` and `trained`,
        mean recalls in per cent, where `measure` is search or text retrieval.
    """
    planned = rows[rows["method"].isin(["limit", "loss", "trained"])]
    settings = pd.DataFrame([*planned["configuration"].map(json.loads)], planned.index)
    settings = settings.rename(columns={"dose": "beta"})
    recalls = 100 * planned[[f"{test}/{way}_mean" for way in WAYS]].set_axis(WAYS.values(), axis=1)
    named = settings[[*POINT[:-1], "seed"]].assign(method=planned["method"]).join(recalls)
    key = [*POINT[:3], "measure", "seed"]
    long = named.melt([*POINT[:-1], "seed", "method"], var_name="measure", value_name="recall")
    of_method = dict(list(long.groupby("method")))
    limit = of_method["limit"].set_index(key)["recall"].rename("limit")
    found = [
        of_method[name].set_index([*key, "batch_size"])["recall"] for name in ("loss", "trained")
    ]
    table = pd.concat(found, axis=1, keys=["loss", "trained"]).dropna()
    return table.reset_index().join(limit, on=key)


def curve_claims(draws: pd.DataFrame) -> pd.DataFrame:
    """What experiments/spectrum.md counts as success.

    Args:
        draws: from `curve`.

    Returns:
        For the claims 1 to 3 the mean absolute `error`, in points, what it is to be `below`, and
        the `outcome`: `holds` or `contradicted`.
    """
    means = draws.groupby(POINT)[["limit", "loss", "trained"]].mean()
    errors = means[["limit", "loss"]].rsub(means["trained"], axis=0).abs()
    beta = means.index.get_level_values("beta")
    changes = means.xs(0.2, level="beta") - means.xs(0, level="beta")
    of_changes = (changes["trained"] - changes["loss"]).abs().mean()
    large = errors[beta >= 0.2].mean()
    claims = {
        "recall up to a beta of 0.2": (errors.loc[beta <= 0.2, "loss"].mean(), 1.0),
        "recall from a beta of 0.2 on": (large["loss"], large["limit"]),
        "change by a beta of 0.2": (of_changes, 0.5),
    }
    table = pd.DataFrame(claims, ["error", "below"]).T
    holds = table["error"] < table["below"]
    return table.assign(outcome=holds.map({True: "holds", False: "contradicted"}))


def gains_rule(rows: pd.DataFrame) -> pd.DataFrame:
    """What experiments/gains.md decides by: validation recall over that of today's heads.

    Args:
        rows: of gains.csv, those of gains.yaml.

    Returns:
        A row for each method that may take another's place, alone and in the sum: over how many
        points, by `condition`, and whether they are positive `everywhere`. Linear heads are
        compared with the better of both closed forms.
    """
    ways = [f"validation_{way}_mean" for way in WAYS]
    planned = rows.assign(recall=100 * rows[ways].mean(axis=1))
    recall = planned.pivot_table("recall", "method", "condition", sort=False)
    over = {}
    for start in ("", "heads + "):
        power, threshold, linear = (start + name for name in ("power", "threshold", "linear"))
        over[f"{threshold} over {power}"] = recall.loc[threshold] - recall.loc[power]
        closed = recall.loc[[power, threshold]].max()
        over[f"{linear} over both"] = recall.loc[linear] - closed
    table = pd.DataFrame(over).T
    return table.assign(everywhere=(table > 0).all(axis=1))
