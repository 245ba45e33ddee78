"""Few-shot adapters of a trained dual encoder, and their accuracy.

They work on unit vectors: images x, class embeddings t_c (the zero-shot classifier) and a
multiplier s of the cosines. With labelled images x_i of classes y_i, the logits of class c are

    zero-shot      s <x, t_c>
    linear probe   s <x, w_c>,  w = argmin mean_i CE_i(w) + strength * mean_c lambda_c |w_c - t_c|^2
    Tip-Adapter    s <x, t_c> + alpha * sum_{i: y_i = c} exp(-beta (1 - <x, k_i>)),  k_i = x_i
    Tip-Adapter-F  the same with trained k_i

Sources: CLAP (Silva-Rodríguez et al. 2024, arXiv 2312.12730) for the probe, with lambda_c the mean
zero-shot probability of c on its images, but without renormalising w, so that it is convex;
Tip-Adapter (Zhang et al. 2022, arXiv 2111.03930), here without augmentation. The test set selects
nothing.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from cibr.evaluate import load_task, suite_tasks
from cibr.metrics import class_embeddings
from cibr.metrics.retrieval import count_reaching
from cibr.models import DualEncoder
from cibr.models.features import digest_model, embed_pairs, prepare
from cibr_book.experiments.run import train_and_measure
from cibr_book.experiments.tables import differences, in_points, score_table

_SHOTS = (1, 4, 16)
_N_DRAWS = 5
_N_VALIDATED = 4  # labelled images per class held out in turn, as in CoOp's (2022) validation sets
_EPOCHS = 20  # of Tip-Adapter-F
_BATCH = 256
# The first of each is the default: of CLAP, and of Zhang et al. (alpha and beta; rate and epochs).
_STRENGTHS = (1.0, 0.1, 0.01, 0.001)
_ALPHAS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_BETAS = (1.0, 3.0, 5.0, 10.0, 20.0)
_TIP = ((1.0, 5.5), *itertools.product(_ALPHAS, _BETAS))
_TUNED = tuple(itertools.product((1e-3, 1e-2), (_EPOCHS, 10, 5, 0)))

Logits = Float[Tensor, "q c"]
Images = Float[Tensor, "n d"]
Queries = Float[Tensor, "q d"]
Shots = Int[Tensor, "c k"]


class FewShot(NamedTuple):
    """Labelled images and a zero-shot classifier: unit vectors, labels and the multiplier of the
    cosines.
    """

    images: Images
    labels: Int[Tensor, " n"]
    classes: Float[Tensor, "c d"]
    logit_scale: float

    def logits(self, queries: Queries, weights: Float[Tensor, "c d"] | None = None) -> Logits:
        """Logits of a linear classifier, by default the zero-shot one."""
        return self.logit_scale * queries @ (self.classes if weights is None else weights).T

    def subset(self, shots: Shots) -> "FewShot":
        """The images at `shots[c]` of each class c."""
        labels = torch.arange(len(shots)).repeat_interleave(shots.shape[1])
        return self._replace(images=self.images[shots.flatten()], labels=labels)


def linear_probes(few: FewShot, strengths: Sequence[float]) -> dict[float, Float[Tensor, "c d"]]:
    """Weights of logistic regression regularised towards the zero-shot weights, by L-BFGS, for
    every strength.

    The largest strength starts from the zero-shot weights, each other one from the previous
    solution.

    Args:
        few: the labelled images and the zero-shot classifier.
        strengths: weights of the penalty.

    Returns:
        Weights [c, d] by strength.
    """
    own = few.logits(few.images).softmax(1).gather(1, few.labels[:, None]).squeeze(1)
    counts = few.labels.bincount(minlength=len(few.classes)).clamp(min=1)
    share = torch.zeros(len(few.classes)).index_add(0, few.labels, own) / counts  # [c]
    solutions = {}
    weights = few.classes.clone().requires_grad_()
    for strength in sorted(strengths, reverse=True):
        lbfgs = torch.optim.LBFGS(
            [weights], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def loss(strength=strength, lbfgs=lbfgs) -> Tensor:
            lbfgs.zero_grad()
            value = F.cross_entropy(few.logits(few.images, weights), few.labels)
            value = value + strength * (share * (weights - few.classes).square().sum(1)).mean()
            value.backward()
            return value

        lbfgs.step(loss)
        solutions[strength] = weights.detach().clone()
    return solutions


def tip_logits(
    few: FewShot, queries: Queries, alpha: float, beta: float, keys: Images | None = None
) -> Logits:
    """Logits of Tip-Adapter.

    Args:
        few: the labelled images and the zero-shot classifier.
        queries: unit vectors to classify, [q, d].
        alpha: weight of the labelled images.
        beta: sharpness of the affinities.
        keys: k_i, [n, d]; by default the labelled images.

    Returns:
        Logits [q, c].
    """
    affinity = queries @ (few.images if keys is None else keys).T
    values = F.one_hot(few.labels, len(few.classes)).to(affinity)
    return few.logits(queries) + alpha * (beta * (affinity - 1)).exp() @ values


def tip_keys(few: FewShot, alpha: float, beta: float, rate: float, n_epochs: int) -> Images:
    """Trains the keys of Tip-Adapter-F.

    AdamW on batches in the same order in every call; the cosine schedule always ends at 20 epochs,
    so that fewer epochs are a prefix of the same training.

    Args:
        few: the labelled images and the zero-shot classifier.
        alpha: as in `tip_logits`.
        beta: as in `tip_logits`.
        rate: learning rate at the start.
        n_epochs: over the labelled images.

    Returns:
        The keys, [n, d].
    """
    keys = few.images.clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    adamw = torch.optim.AdamW([keys], rate, eps=1e-4)
    n_steps = _EPOCHS * math.ceil(len(keys) / _BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adamw, n_steps)
    for _ in range(n_epochs):
        for rows in torch.randperm(len(keys), generator=generator).split(_BATCH):
            logits = tip_logits(few, few.images[rows], alpha, beta, keys)
            adamw.zero_grad()
            F.cross_entropy(logits, few.labels[rows]).backward()
            adamw.step()
            schedule.step()
    return keys.detach()


def accuracy(logits: Logits, labels: Int[Tensor, " q"]) -> float:
    """The share of queries whose own class has the single largest logit: ties count as wrong, as in
    zero-shot.
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return (count_reaching(logits, own) == 1).double().mean().item()


def validation_splits(few: FewShot, shots: Shots) -> list[tuple[FewShot, FewShot]]:
    """Kept and held-out shots: a quarter of each class at a time, until four per class have been
    held out.

    With four shots this is leave-one-out, with sixteen a single split, with fewer than four there
    is none.
    """
    n_held = shots.shape[1] // _N_VALIDATED
    if n_held == 0:
        return []
    part = torch.arange(shots.shape[1]) // n_held
    masks = [part == i for i in range(_N_VALIDATED // n_held)]
    return [(few.subset(shots[:, ~held]), few.subset(shots[:, held])) for held in masks]


def choose(
    method: Callable[..., dict], settings: Sequence, splits: list[tuple[FewShot, FewShot]]
) -> Any:
    """The setting with the highest accuracy on held-out shots; the first on ties or without
    held-out shots.
    """
    correct = dict.fromkeys(settings, 0)
    for kept, held in splits:
        for setting, logits in method(kept, held.images, settings).items():
            correct[setting] += round(accuracy(logits, held.labels) * len(held.labels))
    return max(settings, key=correct.__getitem__)


def _probe(few: FewShot, queries: Queries, strengths: Sequence[float]) -> dict:
    return {s: few.logits(queries, weights) for s, weights in linear_probes(few, strengths).items()}


def _tip(few: FewShot, queries: Queries, settings: Sequence[tuple]) -> dict:
    return {s: tip_logits(few, queries, *s) for s in settings}


def _tuned(few: FewShot, queries: Queries, settings: Sequence[tuple]) -> dict:
    return {s: tip_logits(few, queries, *s[:2], tip_keys(few, *s)) for s in settings}


def adapt(data: FewShot, shots: Shots, queries: Queries) -> dict[str, Logits]:
    """Logits of queries by adapters with settings chosen on held-out shots, or the defaults without
    any.

    Args:
        data: all images, of which a method sees only the shots.
        shots: indices of the labelled images of each class.
        queries: unit vectors to classify.

    Returns:
        Results of `linear probe`, `Tip-Adapter`, and `Tip-Adapter-F`, with the alpha and beta of
        the latter.
    """
    few = data.subset(shots)
    splits = validation_splits(data, shots)
    strength = choose(_probe, _STRENGTHS, splits)
    tip = choose(_tip, _TIP, splits)
    tuned = choose(_tuned, [(*tip, *setting) for setting in _TUNED], splits)
    return {
        "linear probe": _probe(few, queries, [strength])[strength],
        "Tip-Adapter": _tip(few, queries, [tip])[tip],
        "Tip-Adapter-F": _tuned(few, queries, [tuned])[tuned],
    }


def draw_shots(labels: Int[Tensor, " n"], draw: int) -> tuple[Shots, Int[Tensor, " q"]]:
    """Indices of sixteen shots per class, the first ones being those of smaller numbers, and of all
    other images.

    Raises:
        ValueError: a class with no image beyond its shots.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw))
    most = max(_SHOTS)
    fewest = int(labels.bincount().min())
    if fewest <= most:
        raise ValueError(f"a class has {fewest} images: {most} shots and a test image need more")
    shots = torch.stack([order[labels[order] == c][:most] for c in range(int(labels.max()) + 1)])
    return shots, order[~torch.isin(order, shots)]


def _measure_set(data: FewShot) -> pd.DataFrame:
    """Accuracies on the images outside a draw, one row per draw, one column `<shots>/<method>`."""
    rows = []
    for draw in range(_N_DRAWS):
        shots, rest = draw_shots(data.labels, draw)
        queries = data.images[rest]
        logits = {"0/zero-shot": data.logits(queries)}
        for k in _SHOTS:
            adapted = adapt(data, shots[:, :k], queries)
            logits |= {f"{k}/{name}": values for name, values in adapted.items()}
        labels = data.labels[rest]
        rows.append({name: accuracy(values, labels) for name, values in logits.items()})
    return pd.DataFrame(rows)


def adapt_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains one configuration, adapts it to every data set of a suite and evaluates the adapters.

    The mini sets have no training split. Sixteen images per class are drawn from the test split,
    five times, and the others test every method at every number of shots. The draws are the same
    for all models.

    Args:
        settings: of `run.train_and_measure`, with `adapted`, the name of the suite.
        folder: of the trained model.

    Returns:
        The metrics of training; `<set>/<shots>/<method>/accuracy@1`, the mean over draws, for each
        set, each group of sets and all; and `mean of 7/<shots>/<method>/deviation`, the standard
        deviation over draws.
    """
    settings = dict(settings)
    suite = settings.pop("adapted")
    metrics = train_and_measure(settings, folder)
    model = DualEncoder.from_pretrained(folder)
    digests = digest_model(model)
    scale = float(model.logit_scale.detach())
    groups = defaultdict(dict)
    for task in suite_tasks(suite, ["zero-shot"]):
        pairs = load_task(task)
        prompts = [prompt for of_class in pairs.prompts() for prompt in of_class]
        inputs = prepare(model, pairs, truncate=True, texts=prompts, digests=digests)
        images, texts = embed_pairs(model, inputs)
        classes = class_embeddings(texts.unflatten(0, (len(pairs.classnames), -1)))
        accuracies = _measure_set(FewShot(images, pairs.labels, classes, scale))
        groups[task.group or task.title][task.title] = accuracies
    means = {group: sum(sets.values()) / len(sets) for group, sets in groups.items()}
    mean = f"mean of {len(means)}"
    overall = sum(means.values()) / len(means)
    for sets in (*groups.values(), means, {mean: overall}):
        for name, draws in sets.items():
            metrics |= {f"{name}/{score}/accuracy@1": x for score, x in draws.mean().items()}
    return metrics | {f"{mean}/{score}/deviation": x for score, x in overall.std().items()}


def adapter_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy@1 over seven data sets in per cent, one row per adapter and number of shots.

    Args:
        rows: from `read_table("adapters.csv")`.

    Returns:
        One column per model with the half-width of Student's 95 % interval over seeds, then one per
        penalty with its difference to CLIP, paired by seed.
    """
    columns = {}
    for name in rows.filter(regex="^mean.*@1$"):
        _, shots, adapter, _ = name.split("/")
        columns[f"{adapter}, {shots} a class"] = name
    named = rows.assign(method=rows["method"] + rows["beta"].map(", beta {:g}".format))
    scores = score_table(named, columns).T.drop("seeds")
    points = rows.assign(**{title: 100 * rows[name] for title, name in columns.items()})
    gains = in_points(differences(points, [*columns]), ["method", "beta"]).T
    gains.columns = [f"{method}, beta {beta:g}, minus CLIP" for method, beta in gains.columns]
    return scores.join(gains)
