"""Few-shot adapters of a trained dual encoder, and their accuracy.

All but CoOp work on unit vectors: images x, class embeddings t_c (the zero-shot classifier) and a
multiplier s of the cosines. With labelled images x_i of classes y_i, the logits of class c are

    zero-shot      s <x, t_c>
    linear probe   s <x, w_c>,  w = argmin mean_i CE_i(w) + strength * mean_c lambda_c |w_c - t_c|^2
    Tip-Adapter    s <x, t_c> + alpha * sum_{i: y_i = c} exp(-beta (1 - <x, k_i>)),  k_i = x_i
    Tip-Adapter-F  the same with trained k_i

Sources: CLAP (Silva-Rodríguez et al. 2024, arXiv 2312.12730) for the probe, with lambda_c the mean
zero-shot probability of c on its images, but without renormalising w, so that it is convex;
Tip-Adapter (Zhang et al. 2022, arXiv 2111.03930), here without augmentation; CoOp (Zhou et al.
2022, arXiv 2109.01134). The test set selects nothing.
"""

from collections import Counter
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
from cibr_book.run import train_and_measure
from cibr_book.tables import differences, in_points, score_table

SHOTS, N_DRAWS = (1, 4, 16), 5
N_VALIDATED = 4  # labelled images per class that are held out in turn, as in CoOp's validation sets
EPOCHS, BATCH = 20, 256  # of Tip-Adapter-F
# The first of each is the default: of CLAP, and alpha, beta, learning rate and epochs of Zhang et
# al.
STRENGTHS = (1.0, 0.1, 0.01, 0.001)
TIP = (
    (1.0, 5.5),
    *((a, b) for a in (1.0, 3.0, 10.0, 30.0, 100.0, 300.0) for b in (1.0, 3.0, 5.0, 10.0, 20.0)),
)
TUNED = tuple((rate, epochs) for rate in (1e-3, 1e-2) for epochs in (EPOCHS, 10, 5, 0))

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
    weights, found = few.classes, {}
    for strength in sorted(strengths, reverse=True):
        weights = weights.clone().requires_grad_()
        optimiser = torch.optim.LBFGS(
            [weights], max_iter=100, tolerance_grad=1e-5, line_search_fn="strong_wolfe"
        )

        def loss(weights=weights, strength=strength, optimiser=optimiser) -> Tensor:
            optimiser.zero_grad()
            value = F.cross_entropy(few.logits(few.images, weights), few.labels)
            value = value + strength * (share * (weights - few.classes).square().sum(1)).mean()
            value.backward()
            return value

        optimiser.step(loss)
        found[strength] = weights = weights.detach()
    return found


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


def tip_keys(few: FewShot, alpha: float, beta: float, rate: float, n_epochs: int) -> list[Images]:
    """Trains the keys of Tip-Adapter-F.

    AdamW on batches in the same order in every call; the cosine schedule always ends at `EPOCHS`.

    Args:
        few: the labelled images and the zero-shot classifier.
        alpha: as in `tip_logits`.
        beta: as in `tip_logits`.
        rate: learning rate at the start.
        n_epochs: over the labelled images.

    Returns:
        The labelled images, then the keys after each epoch, [n, d] each.
    """
    keys, generator = few.images.clone().requires_grad_(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW([keys], rate, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, EPOCHS * -(-len(keys) // BATCH)
    )
    found = [few.images]
    for _ in range(n_epochs):
        for rows in torch.randperm(len(keys), generator=generator).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(
                tip_logits(few, few.images[rows], alpha, beta, keys), few.labels[rows]
            ).backward()
            optimiser.step()
            schedule.step()
        found.append(keys.detach().clone())
    return found


def accuracy(logits: Logits, labels: Int[Tensor, " q"]) -> float:
    """The share of queries whose own class has the single largest logit: ties count as wrong, as in
    zero-shot.
    """
    return float(
        (count_reaching(logits, logits.gather(1, labels[:, None]).squeeze(1)) == 1).double().mean()
    )


def validation_splits(few: FewShot, shots: Shots) -> list[tuple[FewShot, FewShot]]:
    """Kept and held-out shots: a quarter of each class at a time, until four per class have been
    held out.

    With four shots this is leave-one-out, with sixteen a single split, with fewer than four there
    is none.
    """
    n_held = shots.shape[1] // N_VALIDATED
    parts = shots.split(n_held, 1) if n_held else ()
    pairs = [(torch.cat([*parts[:i], *parts[i + 1 :]], 1), held) for i, held in enumerate(parts)]
    return [(few.subset(a), few.subset(b)) for a, b in pairs[: -(-N_VALIDATED // max(n_held, 1))]]


def choose(
    method: Callable[..., dict], settings: Sequence, splits: list[tuple[FewShot, FewShot]]
) -> Any:
    """The setting with the highest accuracy on held-out shots; the first on ties or without
    held-out shots.
    """
    correct = Counter(dict.fromkeys(settings, 0))
    for kept, held in splits:
        for setting, logits in method(kept, held.images, settings).items():
            correct[setting] += round(accuracy(logits, held.labels) * len(held.labels))
    return max(settings, key=correct.__getitem__)


def _probe(few: FewShot, queries: Queries, strengths: Sequence[float]) -> dict:
    return {s: few.logits(queries, weights) for s, weights in linear_probes(few, strengths).items()}


def _tip(few: FewShot, queries: Queries, settings: Sequence[tuple]) -> dict:
    return {setting: tip_logits(few, queries, *setting) for setting in settings}


def _tuned(few: FewShot, queries: Queries, settings: Sequence[tuple]) -> dict:
    found = {}
    for start in dict.fromkeys(setting[:3] for setting in settings):  # alpha, beta, rate
        epochs = [setting[3] for setting in settings if setting[:3] == start]
        keys = tip_keys(few, *start, max(epochs))
        found |= {(*start, e): tip_logits(few, queries, *start[:2], keys[e]) for e in epochs}
    return found


def adapt(data: FewShot, shots: Shots, queries: Queries) -> dict[str, Logits]:
    """Logits of queries by adapters with settings chosen on held-out shots, or the defaults without
    any.

    Args:
        data: all images, of which a method sees only the shots.
        shots: indices of the labelled images of each class.
        queries: unit vectors to classify.

    Returns:
        By method: `linear probe`, `Tip-Adapter`, and `Tip-Adapter-F` with the alpha and beta of the
            latter.
    """
    few, splits = data.subset(shots), validation_splits(data, shots)
    strength, tip = choose(_probe, STRENGTHS, splits), choose(_tip, TIP, splits)
    tuned = choose(_tuned, [(*tip, *setting) for setting in TUNED], splits)
    methods = {
        "linear probe": (_probe, strength),
        "Tip-Adapter": (_tip, tip),
        "Tip-Adapter-F": (_tuned, tuned),
    }
    return {name: method(few, queries, [best])[best] for name, (method, best) in methods.items()}


def prompt_features(
    model: DualEncoder, context: Float[Tensor, "t w"], names: list[str]
) -> Float[Tensor, "c d"]:
    """Unit text features of the prompts `[context] name.`, with learned vectors as context tokens.

    The text tower of transformers takes only token ids, so a hook inserts the vectors after its
    embedding layer; positions, mask and end of text are those of the ids.

    Raises:
        ValueError: a prompt longer than the model's context.
    """
    ids, mask = model.tokenize([f"{name}." for name in names])
    start, n = int(ids[0, 0] == model.tokenizer.bos_token_id), len(context)
    if (length := ids.shape[1] + n) > model.context:
        raise ValueError(
            f"a prompt has {length} tokens and the model reads {model.context}: learn fewer vectors"
        )
    # The placeholder for the vectors is a name's first token; any but the end of text would do.
    ids, mask = (torch.cat([x[:, :start], x[:, [start] * n], x[:, start:]], 1) for x in (ids, mask))

    def put_in(layer, given, embedded: Tensor) -> Tensor:
        return torch.cat(
            [embedded[:, :start], context.expand(len(ids), -1, -1), embedded[:, start + n :]], 1
        )

    hook = model.backbone.model.text_model.embeddings.token_embedding.register_forward_hook(put_in)
    try:
        return model.encode_texts(ids, mask).features
    finally:
        hook.remove()


def learn_prompts(
    model: DualEncoder, few: FewShot, names: list[str], n_context: int = 16, epochs: int = 50
) -> tuple[Float[Tensor, "t w"], list[float]]:
    """CoOp: learned context vectors before the name, shared by all classes, by SGD with a cosine
    schedule.

    Source: Zhou et al. (2022), section 3.1, with the learning rate, batch size and initial standard
    deviation of their code; it takes 50 epochs with one shot, 100 with two or four and 200 with
    more, after one warm-up epoch at a rate of 1e-5, which is left out here.

    Args:
        model: over a `CLIPModel`, whose weights are not changed.
        few: the labelled images; the zero-shot classifier is not used.
        names: of the classes.
        n_context: number of vectors.
        epochs: over the labelled images.

    Returns:
        The context, and the mean training loss of each epoch in nats.
    """
    generator, history = torch.Generator().manual_seed(0), []
    context = 0.02 * torch.randn(n_context, model.backbone.dim_text_pooled, generator=generator)
    optimiser = torch.optim.SGD([context.requires_grad_()], 0.002, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    for _ in range(epochs):
        losses = []
        for rows in torch.randperm(len(few.labels), generator=generator).split(32):
            with model.evaluating(), torch.enable_grad():
                logits = few.logits(few.images[rows], prompt_features(model, context, names))
            losses.append(F.cross_entropy(logits, few.labels[rows], reduction="none"))
            (context.grad,) = torch.autograd.grad(
                losses[-1].mean(), context
            )  # not for the model's weights
            optimiser.step()
        schedule.step()
        history.append(float(torch.cat(losses).detach().mean()))
    return context.detach(), history


def draw_shots(labels: Int[Tensor, " n"], draw: int) -> tuple[Shots, Int[Tensor, " q"]]:
    """Indices of sixteen shots per class, the first ones being those of smaller numbers, and of all
    other images.

    Raises:
        ValueError: a class with no image beyond its shots.
    """
    order, most = (
        torch.randperm(len(labels), generator=torch.Generator().manual_seed(draw)),
        max(SHOTS),
    )
    if (n := int(labels.bincount().min())) <= most:
        raise ValueError(f"a class has {n} images: {most} shots and one to test take more")
    shots = torch.stack([order[labels[order] == c][:most] for c in range(int(labels.max()) + 1)])
    return shots, order[~torch.isin(order, shots)]


def measure_set(data: FewShot) -> pd.DataFrame:
    """Accuracies on the images outside a draw, one row per draw and one column `<shots>/<method>`."""
    found = []
    for draw in range(N_DRAWS):
        shots, rest = draw_shots(data.labels, draw)
        queries, labels = data.images[rest], data.labels[rest]
        logits = {"0/zero-shot": data.logits(queries)}
        for k in SHOTS:
            logits |= {
                f"{k}/{name}": each for name, each in adapt(data, shots[:, :k], queries).items()
            }
        found.append({name: accuracy(each, labels) for name, each in logits.items()})
    return pd.DataFrame(found)


def adapt_and_measure(settings: dict[str, Any], folder: str | Path) -> dict[str, float]:
    """Trains one configuration, adapts it to every data set of a suite and evaluates the adapters.

    The mini sets have no training split. Sixteen images per class are drawn from the test split,
    five times, and the others test every method at every number of shots. The draws are the same
    for all models.

    Args:
        settings: of `cibr_book.run.train_and_measure`, with `adapted`, the name of the suite.
        folder: of the trained model.

    Returns:
        The metrics of training; `<set>/<shots>/<method>/accuracy@1`, the mean over draws, for each
        set, each group of sets and all; and `mean of 7/<shots>/<method>/deviation`, the standard
        deviation over draws.
    """
    metrics = train_and_measure(
        {name: value for name, value in settings.items() if name != "adapted"}, folder
    )
    model = DualEncoder.from_pretrained(folder)
    digests, scale, groups = digest_model(model), float(model.logit_scale.detach()), {}
    for task in suite_tasks(settings["adapted"], ["zero-shot"]):
        pairs = load_task(task)
        prompts = [prompt for of_class in pairs.prompts() for prompt in of_class]
        images, texts = embed_pairs(
            model, prepare(model, pairs, truncate=True, texts=prompts, digests=digests)
        )
        classes = class_embeddings(texts.unflatten(0, (len(pairs.classnames), -1)))
        found = measure_set(FewShot(images, pairs.labels, classes, scale))
        groups.setdefault(task.group or task.title, {})[task.title] = found
    means = {group: sum(members.values()) / len(members) for group, members in groups.items()}
    mean, overall = f"mean of {len(means)}", sum(means.values()) / len(means)
    for sets in (*groups.values(), means, {mean: overall}):
        for name, found in sets.items():
            metrics |= {
                f"{name}/{score}/accuracy@1": value for score, value in found.mean().items()
            }
    return metrics | {f"{mean}/{score}/deviation": value for score, value in overall.std().items()}


def adapter_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy@1 over seven data sets in per cent, one row per adapter and number of shots.

    Args:
        rows: from `read_table("adapters.csv")`.

    Returns:
        One column per model with the half-width of Student's 95 % interval over seeds, then one per
        penalty with its difference to CLIP, paired by seed.
    """
    columns = {
        "{2}, {1} a class".format(*name.split("/")): name
        for name in rows.filter(regex="^mean.*@1$")
    }
    named = rows.assign(method=rows["method"] + rows["beta"].map(", beta {:g}".format))
    scores = score_table(named, columns).T.drop("seeds")
    points = rows.assign(**{title: 100 * rows[column] for title, column in columns.items()})
    found = in_points(differences(points, [*columns]), ["method", "beta"]).T
    found.columns = [f"{method}, beta {beta:g}, minus CLIP" for method, beta in found.columns]
    return scores.join(found)
