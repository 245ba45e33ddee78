"""What a page with parameters says of the run that it has made: sentences and tables.

Every sentence is computed from the run, for any parameters, and is standard Markdown, which
Jupyter, GitHub and an HTML file of the notebook show alike. Headers of tables and the words beside
numbers name the unit, by which the notebook's stored outputs are compared.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cibr.data import Pairs
from cibr.evaluate import Evaluation
from cibr.metrics import mean_interval
from cibr_book.experiments import twins
from cibr_book.experiments.twins import CHANCE, MORE, Point, Twins

_SETS = {
    "photos-cifar10": "CIFAR-10",
    "photos-caltech101": "Caltech-101",
    "photos-imagenette": "Imagenette",
    "photos-intel-scenes": "scenes",
    "photos-pacs-photo": "PACS photo",
    "photos-clothing10": "clothing",
    "photos-rsscn7": "land use",
}
_WAYS = {"text_to_image": "search", "image_to_text": "text retrieval"}
_PENALTIES = {"vmf": "vMF", "crossfit": "cross-fitting", "mine": "MINE"}
_MODELS = {
    "names": "a model that knows names before it has seen a caption",
    "frozen": "heads over frozen encoders",
}
_MODELS |= {"tiny": "two small encoders from scratch"}


def run(own: Twins, pairs: Pairs, validation: Pairs, test: Pairs) -> str:
    """What was trained on what, and whether this page is that of the default run.

    Args:
        own: the run and its twin.
        pairs: what both were trained on.
        validation: what both are watched on.
        test: what both are measured on.
    """
    config = own.config
    model = _MODELS.get(config.model, f"`{config.model}`")
    data = "the photos of Flickr8k that come with the book"
    if config.dataset != "photos":
        data = f"`{pairs.name}`"
    start = f"**This run** trains {model} on {len(pairs):,} images of {data}"
    if config.beta == 0:
        lines = [f"{start} with CLIP's loss alone ($\\beta = 0$), so its twin is the same run. "]
    else:
        lines = [f"{start}, {_price(own)}, and its twin at $\\beta = 0$. "]
    lines += [f"The seed is {config.seed}, and training takes {config.epochs} epochs. Validation "]
    lines += [f"has {len(validation):,} other images with their texts, and the test {len(test):,}"]
    lines += [", beside photos of other sets." if config.dataset == "photos" else "."]
    if config.train_stages:
        lines += [f" The last {config.train_stages} stages of both towers are trained, too."]
    if not own.is_default:
        lines += ["\n\n> These are not the defaults. What this page says of its results is "]
        lines += ["computed from this run; there are no stored runs of these settings beside it."]
    return "".join(lines)


def _price(own: Twins) -> str:
    config = own.config
    return f"with the penalty {_PENALTIES[config.penalty]} at $\\beta = {config.beta:g}$"


def _wide(scores: Mapping[str, list[Evaluation]], kind: str) -> pd.DataFrame:
    """Scores in per cent, a row a model after one for chance, a column `(dataset, metric)`."""
    rows = {}
    for name, evaluations in scores.items():
        table = pd.concat([of.rows for of in evaluations])
        table = table[table["kind"] == kind].set_index(["dataset", "metric"])
        rows.setdefault("chance", 100 * table["chance"])
        rows[name] = 100 * table["value"]
    return pd.DataFrame(rows).T


def zero_shot_table(scores: Mapping[str, list[Evaluation]]) -> pd.DataFrame | None:
    """Zero-shot accuracy in per cent, by set and on average; None if no set has classes.

    Args:
        scores: see `twins.evaluations`, by the model's name.
    """
    table = _wide(scores, "zero-shot")
    if table.empty:
        return None
    accuracy = table.xs("accuracy@1", axis=1, level="metric")
    names = {name: _SETS.get(name, name) for name in accuracy}
    accuracy = accuracy.rename(columns=names).round(1)
    return accuracy.rename_axis(columns="zero-shot accuracy, %")


def knowledge(scores: Mapping[str, list[Evaluation]]) -> str:
    """What fine-tuning with CLIP's loss alone did to zero-shot accuracy; "" without any classes.

    Args:
        scores: see `twins.evaluations`, of the start and of CLIP, in this order.
    """
    table = zero_shot_table(scores)
    if table is None:
        return ""
    start, clip = table.iloc[1], table.iloc[2]
    mean = next(name for name in table if name.startswith("mean of"))
    moved = f"moved the {mean} sets from {start[mean]} to {clip[mean]} %"
    said = f"Fine-tuning with CLIP's loss {moved}."
    change = (clip - start).drop(mean)
    lost = change.idxmin()
    if change[lost] < 0:
        said += f" It lost most on {lost}, which went from {start[lost]} to {clip[lost]} %."
    else:
        said += " No set lost."
    return said


def retrieval_table(scores: Mapping[str, list[Evaluation]]) -> pd.DataFrame:
    """Recall at 1, 5 and 10 in per cent, of both directions and of each set.

    Args:
        scores: see `twins.evaluations`, by the model's name.
    """
    table = _wide(scores, "retrieval").round(1)
    columns = []
    for dataset, metric in table:
        way = next(word for name, word in _WAYS.items() if metric.startswith(name))
        title = twins.TITLES.get(dataset, dataset)
        columns.append((f"{title}: {way}, %", f"R@{metric.rpartition('@')[2]}"))
    table.columns = pd.MultiIndex.from_tuples(columns)
    order = [column for word in _WAYS.values() for column in columns if f": {word}," in column[0]]
    titles = [title for title, _ in order]
    return table[sorted(order, key=lambda column: titles.index(column[0]))]


def means(evaluations: list[Evaluation]) -> pd.Series:
    """The scores of `twins.headline` in per cent."""
    scores = twins.headline(evaluations)
    return pd.Series({name: 100 * values.mean() for name, values in scores.items()})


def geometry(clip: Mapping[str, float], own: Mapping[str, float], of: Twins) -> str:
    """Whether the penalty has drawn pairs and modalities together.

    Args:
        clip: see `twins.geometry`, of the twin at beta = 0.
        own: of the run.
        of: both.
    """
    if of.config.beta == 0:
        return "At $\\beta = 0$ the penalty has no gradient: the twins are one model, bit for bit."
    words = []
    for name, thing in {"1 - cos": "pairs", "gap": "the two modalities"}.items():
        change = own[name] - clip[name]
        if abs(change) < 0.005:
            moved = f"left {thing} as far apart as without it"
        elif change < 0:
            moved = f"drew {thing} nearer together"
        else:
            moved = f"moved {thing} further apart"
        values = f"{name} {clip[name]:.3f} without it, {name} {own[name]:.3f} with it"
        words.append(f"{moved} ({values})")
    return f"In this run the penalty {words[0]} and {words[1]}."


def cosine_table(embedded: Mapping[str, tuple[Tensor, Tensor]], first_text: Tensor) -> pd.DataFrame:
    """The mean cosines of images with their own texts and with the others', a row a model.

    Args:
        embedded: of each model by name, unit vectors of n images [n, d] and m texts [m, d].
        first_text: the row of each image's text, [n].
    """
    table = {}
    for name, (images, texts) in embedded.items():
        cosines = images @ texts[first_text].T
        is_pair = torch.eye(len(cosines), dtype=torch.bool)
        own, others = cosines[is_pair].mean().item(), cosines[~is_pair].mean().item()
        table[name] = own, others, own - others
    columns = ["cosine of pairs", "cosine of others", "difference"]
    return pd.DataFrame.from_dict(table, orient="index", columns=columns).round(2)


def findings_table(found: pd.DataFrame, own: Twins) -> pd.DataFrame:
    """Both twins' scores, their differences with both intervals, and the verdict.

    Args:
        found: of `twins.findings`.
        own: the run and its twin.
    """
    table = pd.DataFrame(index=found.index)
    table["CLIP, %"] = found["clip"].round(1)
    table[f"beta = {own.config.beta:g}, %"] = found["cibr"].round(1)
    table["change, points"] = found["change"].map("{:+.2f}".format)
    table["95 % over photos, points"] = _intervals(found["low"], found["high"])
    if found["seeds_low"].notna().all():
        table["95 % of single runs, points"] = _intervals(found["seeds_low"], found["seeds_high"])
    table["is it chance?"] = found["verdict"]
    return table.rename_axis(index=None)


def _intervals(low: pd.Series, high: pd.Series) -> list[str]:
    return [f"{a:+.2f} to {b:+.2f}" for a, b in zip(low, high, strict=True)]


def findings(found: pd.DataFrame, own: Twins) -> str:
    """The verdict on one run in a paragraph.

    Args:
        found: of `twins.findings`.
        own: the run and its twin.
    """
    price = _price(own)
    if own.config.beta == 0:
        return "**Nothing changes**: without a price the penalty has no part in the loss."
    if own.is_default:
        beyond = found[found["verdict"] == MORE]
        within = found[found["verdict"] == CHANCE]
        said = [f"**This one run** {price}"]
        if len(beyond):
            said += [f"changed more than chance would: {_listed(beyond)}."]
            said += [f"No more than chance: {_listed(within)}."] if len(within) else []
        else:
            said += ["shows no change of recall or accuracy that is more than chance."]
        said += [_average(found.index)]
        return " ".join(said)
    beyond = found[(found["low"] > 0) | (found["high"] < 0)]
    said = [f"**One seed: we cannot tell.** {price[0].upper() + price[1:]} this run changed"]
    if len(beyond):
        said += [f"{_listed(beyond)}, more than another choice of test images would explain;"]
        said += ["but another draw and another seed might have done that as well."]
    else:
        said += ["nothing more than another choice of test images would explain."]
    said += ["Run further seeds (`-p seed 1`, `-p seed 2`, ...) and see whether the sign stays."]
    return " ".join(said)


def _average(measures: pd.Index) -> str:
    """What the default run's penalty changes on average over the stored seeds."""
    spread = pd.read_csv(twins.RESULTS / twins.SPREAD)
    changed = []
    for name in measures:
        mean, low, high = mean_interval(
            spread.loc[spread["measure"] == name, "difference"].to_numpy()
        )
        if low > 0 or high < 0:
            changed.append(f"{name} by {mean:+.2f} points (from {low:+.2f} to {high:+.2f} points)")
    if not changed:
        return "Nor is there one on average over the 16 other seeds."
    listed = ", ".join(changed)
    return (
        "On average over the 16 other seeds, which one run cannot show, the same penalty changed "
        f"{listed}, on these test photos; the other averages cannot be told from zero."
    )


def _listed(found: pd.DataFrame) -> str:
    parts = [f"{name} by {change:+.2f} points" for name, change in found["change"].items()]
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def folders(own: Twins) -> str:
    """Where both models are, by the names of their folders."""
    paths = [config.output_dir for config in (own.clip_config, own.config)]
    names = dict.fromkeys("/".join(path.split("/")[-2:]) for path in paths)
    is_default = Path(own.config.output_dir).parent.name.startswith("twins-")
    place = ", under `runs/` or the folder that `CIBR_RUNS` names" if is_default else ""
    return "Saved: " + ", ".join(f"`{name}`" for name in names) + place


def point(penalty: str, beta: float) -> str:
    """A penalty at a price in words."""
    return "CLIP" if beta == 0 else f"{_PENALTIES[penalty]}, beta = {beta:g}"


def points(of: Sequence[Point]) -> str:
    """Penalties and prices in words."""
    words = [point(*each) for each in of]
    return words[0] if len(words) == 1 else f"{'; '.join(words[:-1])} and {words[-1]}"


def score_table(
    scores: Mapping[twins.Run, Mapping[str, np.ndarray]], of: Sequence[Point]
) -> pd.DataFrame:
    """Mean scores over seeds in per cent, a row a point.

    Args:
        scores: of `twins.headline`, by penalty, beta and seed.
        of: the points, in the order of the rows.
    """
    means = {
        run: {f"{name}, %": 100 * values.mean() for name, values in each.items()}
        for run, each in scores.items()
    }
    return mean_table(means, of).round(1)


def mean_table(
    values: Mapping[twins.Run, Mapping[str, float]], of: Sequence[Point]
) -> pd.DataFrame:
    """Means over seeds, a row a point.

    Args:
        values: by penalty, beta and seed, and by name.
        of: the points, in the order of the rows.
    """
    table = pd.DataFrame(values).T.groupby(level=[0, 1]).mean().loc[[*of]]
    table.index = [point(*each) for each in of]
    return table


def over_beta(changes: pd.DataFrame) -> str:
    """Which differences from CLIP their intervals tell from zero, in a paragraph.

    Args:
        changes: of `twins.changes`.
    """
    if changes.empty:
        return "**Nothing to compare**: no price but 0 was given."
    is_beyond = (changes["low"] > 0) | (changes["high"] < 0)
    counted = (
        f"**Of {len(changes)} differences from CLIP, {is_beyond.sum()} can be told from zero**"
    )
    counted += " by their 95 % intervals over photos and seeds"
    parts = []
    for (penalty, beta), rows in changes[is_beyond].groupby(["penalty", "beta"]):
        named = zip(rows["measure"], rows["mean"], strict=True)
        listed = [f"{measure} {change:+.1f} points" for measure, change in named]
        parts.append(f"at {point(penalty, beta)} {', '.join(listed)}")
    return f"{counted}: {'; '.join(parts)}." if parts else f"{counted}."


def benchmark_run(models: Sequence[str], beta: float, n_photos: int, n_seeds: int) -> str:
    """What a page of benchmarks measures.

    Args:
        models: finished models; none if some are trained here.
        beta: of both forms of CIBR.
        n_photos: to train on.
        n_seeds: of each model.
    """
    if models:
        return f"**This page** measures {', '.join(f'`{name}`' for name in models)}."
    seeds = "one seed" if n_seeds == 1 else f"{n_seeds} seeds"
    return (
        f"**This page** trains CLIP, CIBR (vMF) and CIBR (MINE) at $\\beta = {beta:g}$ on "
        f"{n_photos:,} photos of Flickr8k, with {seeds} each, and measures them beside their start."
    )


def difference_table(found: pd.DataFrame) -> pd.DataFrame | None:
    """Differences with their intervals as text, a row a measure, a column a model.

    Args:
        found: of `twins.compared`.
    """
    if found.empty:
        return None
    texts = found.assign(
        text=[
            f"{mean:+.2f}, from {low:+.2f} to {high:+.2f}"
            for mean, low, high in zip(found["mean"], found["low"], found["high"], strict=True)
        ]
    )
    order = found["measure"].unique()
    models = found["model"].unique()
    table = texts.pivot(index="measure", columns="model", values="text").loc[order, models]
    table.columns = [f"{name}, points" for name in table]
    return table.rename_axis(index=None)


def told_apart(found: pd.DataFrame, first: str) -> str:
    """Which differences from a model can be told from zero, in a paragraph.

    Args:
        found: of `twins.compared`.
        first: the model that the others were compared with.
    """
    if found.empty:
        return "There is one model, and nothing to compare it with."
    said = []
    for model, rows in found.groupby("model", sort=False):
        is_beyond = (rows["low"] > 0) | (rows["high"] < 0)
        named = zip(rows["measure"][is_beyond], rows["mean"][is_beyond], strict=True)
        listed = ", ".join(f"{measure} {mean:+.2f} points" for measure, mean in named)
        n_others = f"{(~is_beyond).sum()} of {len(rows)}"
        if not listed:
            said.append(f"**{model}** cannot be told from {first} in any of {len(rows)} measures.")
        elif is_beyond.all():
            said.append(f"**{model}** differs from {first} in every measure: {listed}.")
        else:
            said.append(f"**{model}** differs from {first} in {listed}, and cannot be told from it")
            said[-1] += f" in {n_others} measures."
    return " ".join(said)
