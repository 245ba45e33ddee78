"""Figures of the chapters on theory and on estimators, in the visual language of `cibr.plots`.

Each function draws tidy rows on new Axes and returns them; intervals are those of `mean_intervals`.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from torch import Tensor

from cibr.plots import BLUE, GREEN, GREY, ORANGE, PALETTE, RED

Values = Sequence[float | int] | Tensor
SEVEN = (*PALETTE[:6], "#000000")  # without the yellow, which is too pale for a line


def information_plane(curve: pd.DataFrame, clip: pd.DataFrame, limit: float) -> Axes:
    """Shared against residual information: the CIB curve over beta, and what beta = 0 leaves open.

    Args:
        curve: `beta, residual_nats, shared_nats`, one row a beta.
        clip: `codes, residual_nats, shared_nats`, one row a run at beta = 0.
        limit: I(X_v;X_t) in nats, which no encoder exceeds.

    Returns:
        The Axes.
    """
    _, axis = plt.subplots(figsize=(6.6, 4.2), layout="constrained")
    axis.axhline(limit, color=GREY, lw=1, ls=":")
    place = axis.get_yaxis_transform()
    axis.text(0.02, limit, "I(image; text)", color=GREY, va="bottom", fontsize=9, transform=place)
    curve = curve.sort_values("residual_nats")
    axis.plot(curve["residual_nats"], curve["shared_nats"], "o-", color=BLUE, label="CIB, β rising to the left")
    seen: list[float] = []
    for beta, x, y in curve[["beta", "residual_nats", "shared_nats"]].itertuples(index=False):
        if all(abs(x - other) > 0.05 for other in seen):
            axis.annotate(
                f"β={beta:g}", (x, y), xytext=(4, -12), textcoords="offset points", fontsize=8, color=BLUE
            )
            seen.append(x)
    for (codes, rows), colour, marker in zip(clip.groupby("codes"), (GREEN, ORANGE, RED), "s^D", strict=False):
        axis.plot(
            rows["residual_nats"], rows["shared_nats"], marker, color=colour, ls="", ms=7, alpha=0.8,
            label=f"β=0, {codes:g} codes",
        )  # fmt: skip
    axis.set(xlabel="residual information R (nats)", ylabel="shared information (nats)", xlim=(-0.02, None))
    axis.legend(frameon=False, loc="center right", fontsize=9)
    return axis


def noise_and_floor(
    variance: Values,
    residual: Values,
    cosine: Values,
    terms: Mapping[str, Values],
) -> list[Axes]:
    """Left, the residual of a linear encoder as its noise goes; right, terms on the sphere over the cosine.

    Args:
        variance: of the noise.
        residual: I(Z_v;X_v|X_t) for each, in nats.
        cosine: between the towers' mean directions.
        terms: nats over the cosine, by name.

    Returns:
        Two Axes.
    """
    _, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), layout="constrained")
    axes[0].semilogx(variance, residual, "o-", color=BLUE, ms=4)
    axes[0].invert_xaxis()
    axes[0].set(title="less noise, more residual", xlabel="variance of the noise", ylabel="residual (nats)")
    for (name, values), colour in zip(terms.items(), (RED, ORANGE, GREEN), strict=False):
        axes[1].plot(cosine, values, color=colour, lw=2, label=name)
    axes[1].set(title="terms on the sphere", xlabel="cosine of paired means", ylabel="nats", ylim=(0, None))
    axes[1].legend(frameon=False, fontsize=9)
    return list(axes)


def gaussian_optimum(beta: Values, parts: Mapping[str, Mapping[str, Values]]) -> list[Axes]:
    """Information of the optimal linear encoder in each canonical direction, over beta.

    Args:
        beta: the weights.
        parts: by title, for each direction (named by its correlation in order) the nats over beta.

    Returns:
        One Axes a part.
    """
    _, axes = plt.subplots(1, len(parts), figsize=(9.6, 3.6), layout="constrained", sharex=True)
    for axis, (title, directions) in zip(axes, parts.items(), strict=True):
        for (name, nats), colour in zip(directions.items(), (BLUE, ORANGE, GREEN), strict=False):
            axis.semilogx(beta, nats, color=colour, lw=2, label=name)
        axis.set(title=title, xlabel="beta", ylabel="nats", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=9)
    return list(axes)


def before_after(rows: pd.DataFrame, panel: str, ylabel: str) -> list[Axes]:
    """Nats before and after training over temperature, with intervals; one Axes a value of a column.

    Args:
        rows: `temperature, trained, mean, low, high` and the column of the panels, one row a point.
        panel: that column, such as `dim`.
        ylabel: of the first Axes.

    Returns:
        One Axes a panel.
    """
    groups = list(rows.groupby(panel, sort=False))
    width = 3.2 * len(groups)
    _, axes = plt.subplots(1, len(groups), figsize=(width, 3.5), layout="constrained", sharey=True, squeeze=False)
    for axis, (value, group) in zip(axes[0], groups, strict=True):
        for trained, colour, label in ((False, GREY, "untrained"), (True, BLUE, "trained with InfoNCE")):
            part = group[group["trained"] == trained]
            places = np.arange(len(part)) + (0.08 if trained else -0.08)
            errors = [part["mean"] - part["low"], part["high"] - part["mean"]]
            axis.errorbar(places, part["mean"], yerr=errors, fmt="o-", color=colour, capsize=3, label=label)
        ticks = [f"{t:g}" for t in group["temperature"].unique()]
        axis.set(
            title=f"{panel.replace('_', ' ')} {value}",
            xlabel="temperature",
            xticks=range(len(ticks)),
            xticklabels=ticks,
        )
    axes[0][0].set(ylabel=ylabel, ylim=(0, None))
    axes[0][0].legend(frameon=False, fontsize=9)
    return list(axes[0])


def factor_bars(rows: pd.DataFrame, ceilings: Mapping[str, float]) -> Axes:
    """What a linear probe finds of each nuisance factor, in several representations.

    Args:
        rows: `factor, layer, mean, low, high`, one row a bar.
        ceilings: the entropy of each factor in nats, drawn as a line over its bars.

    Returns:
        The Axes.
    """
    _, axis = plt.subplots(figsize=(9.0, 3.8), layout="constrained")
    factors, layers = list(rows["factor"].unique()), list(rows["layer"].unique())
    width = 0.8 / len(layers)
    for i, (layer, colour) in enumerate(zip(layers, (GREY, "#56B4E9", BLUE, ORANGE, GREEN), strict=False)):
        part = rows[rows["layer"] == layer].set_index("factor").loc[factors]
        places = np.arange(len(factors)) + (i - (len(layers) - 1) / 2) * width
        errors = [part["mean"] - part["low"], part["high"] - part["mean"]]
        axis.bar(places, part["mean"], width * 0.92, yerr=errors, color=colour, label=layer, capsize=2)
    for place, factor in enumerate(factors):
        axis.plot([place - 0.45, place + 0.45], [ceilings[factor]] * 2, color="black", lw=1)
    axis.axhline(0, color=GREY, lw=0.8)
    axis.set(ylabel="found by a probe (nats)", xticks=range(len(factors)), xticklabels=factors)
    axis.legend(frameon=False, fontsize=9, ncols=len(layers), loc="upper center", bbox_to_anchor=(0.5, 1.14))
    return axis


def estimates_against_truth(rows: pd.DataFrame, ceiling: float) -> Axes:
    """Estimates over the true information, with intervals, beside the diagonal and the ceiling of InfoNCE.

    Args:
        rows: `truth, estimator, mean, low, high`, one row a point.
        ceiling: log of InfoNCE's batch size.

    Returns:
        The Axes.
    """
    _, axis = plt.subplots(figsize=(6.8, 5.0), layout="constrained")
    most = rows["truth"].max()
    axis.plot([0, most], [0, most], color="black", lw=1)
    axis.text(most, most, "truth ", ha="right", va="bottom", fontsize=9)
    axis.axhline(ceiling, color=GREY, lw=1, ls=":")
    axis.text(0, ceiling, "log N", color=GREY, va="bottom", fontsize=9)
    for (name, part), colour, marker in zip(rows.groupby("estimator", sort=False), SEVEN, "os^DvP*", strict=False):
        errors = [part["mean"] - part["low"], part["high"] - part["mean"]]
        axis.errorbar(
            part["truth"],
            part["mean"],
            yerr=errors,
            fmt=f"{marker}-",
            color=colour,
            ms=5,
            lw=1.3,
            capsize=2,
            label=name,
        )
    axis.set(xlabel="true information (nats)", ylabel="estimate (nats)", ylim=(0, 1.6 * most))
    axis.legend(frameon=False, fontsize=9, loc="upper center")
    return axis


def error_table(errors: pd.DataFrame, truths: pd.Series) -> Axes:
    """Errors of every estimator on every task as a table of colours: red too high, blue too low.

    Args:
        errors: estimate minus truth in nats, [task, estimator].
        truths: the true nats of each task, written beside its name.

    Returns:
        The Axes.
    """
    height = 0.42 * len(errors) + 1
    _, axis = plt.subplots(figsize=(7.4, height), layout="constrained")
    limit = 1.0
    axis.imshow(errors.clip(-limit, limit), cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for i, row in enumerate(errors.to_numpy()):
        for j, value in enumerate(row):
            colour = "white" if abs(value) > 0.6 else "black"
            text = f"{value:+.2f}" if abs(value) < 100 else f"{value:+.0f}".replace("inf", "∞")
            axis.text(j, i, text, ha="center", va="center", fontsize=8.5, color=colour)
    axis.set_yticks(range(len(errors)), [f"{name} ({truths[name]:.2f})" for name in errors.index], fontsize=9)
    axis.set_xticks(range(errors.shape[1]), errors.columns, fontsize=9)
    axis.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False)
    axis.grid(False)
    return axis


def batch_values(rows: pd.DataFrame, truth: float) -> Axes:
    """What the perfect critic's batches say, over the size of the batch: mean and spread of single batches.

    Args:
        rows: `estimator, batch_size, mean, deviation`, one row a point.
        truth: the true information in nats.

    Returns:
        The Axes.
    """
    _, axis = plt.subplots(figsize=(6.8, 4.2), layout="constrained")
    axis.axhline(truth, color="black", lw=1)
    axis.text(0.86, truth, "truth", va="bottom", ha="right", fontsize=9, transform=axis.get_yaxis_transform())
    sizes = np.sort(rows["batch_size"].unique())
    axis.plot(sizes, np.log(sizes), color=GREY, ls=":", label="log N")
    for i, ((name, part), colour, marker) in enumerate(
        zip(rows.groupby("estimator", sort=False), PALETTE, "os^Dv", strict=False)
    ):
        places = part["batch_size"] * 1.05 ** (i - 1.5)
        axis.errorbar(
            places,
            part["mean"],
            yerr=part["deviation"],
            fmt=f"{marker}-",
            color=colour,
            ms=5,
            capsize=2,
            label=name,
        )
    axis.set(xscale="log", xlabel="batch size N", ylabel="nats", ylim=(0, 2 * truth))
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(frameon=False, fontsize=9)
    return axis
