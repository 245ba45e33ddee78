"""What the stored curve over beta says, in sentences and a table made from its rows."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from cibr_book.experiments.study import CURVE, ZERO_SHOT

SMALL = 0.05  # the default beta
_TEXTS = "text retrieval, MSCOCO"


def _at(table: pd.DataFrame, method: str, beta: float, measure: str) -> str:
    """A difference with its interval, in points."""
    is_point = (table["method"] == method) & (table["beta"] == beta)
    [row] = table[is_point & (table["measure"] == measure)].to_dict("records")
    return _points(row)


def _points(row: Mapping[str, Any]) -> str:
    return f"{row['difference']:+.2f} points ({row['low']:+.2f} to {row['high']:+.2f})"


def _on(measure: str) -> str:
    """A measure in running text."""
    return measure.replace(", ", " on ")


def _best(table: pd.DataFrame, method: str) -> dict:
    """The row in which a method gains most."""
    of = table[table["method"] == method]
    return of.loc[of["difference"].idxmax()].to_dict()


def penalties(table: pd.DataFrame) -> str:
    """What the three penalties do to recall and zero-shot accuracy.

    Args:
        table: of `study.over_beta`, vMF, cross-fitting and MINE on `study.CURVE`, beta > 0.
    """
    small = table.loc[table["beta"] <= SMALL, "difference"].abs().max()
    best = _best(table, "vMF")
    where = f"in {_on(best['measure'])} at $\\beta$ = {best['beta']:g}"
    zero_shot = _at(table, "vMF", best["beta"], ZERO_SHOT)
    most = table["beta"].max()
    largest = table[table["beta"] == most]
    n_below = (largest["high"] < 0).sum()
    n_above = (largest["low"] > 0).sum()
    sentences = [
        f"**Up to $\\beta$ = {SMALL:g}, the default, no mean moves by more than "
        f"{small:.2f} points.**",
        f"vMF's largest gain is {_points(best)}, {where}, where zero-shot accuracy changes by "
        f"{zero_shot}.",
        f"The largest of cross-fitting is {_points(_best(table, 'crossfit'))}, the largest of MINE "
        f"{_points(_best(table, 'MINE'))}.",
        f"At $\\beta$ = {most:g}, {n_below} of {len(largest)} intervals lie below zero and "
        f"{n_above or 'none'} above.",
    ]
    return " ".join(sentences)


def parts(table: pd.DataFrame) -> str:
    """Which part of vMF has its gain, and what the anchor does instead.

    Args:
        table: of `study.over_beta` on `study.CURVE`, beta > 0.
    """
    beta = _best(table, "vMF")["beta"]
    of_parts = {
        name: _at(table, name, beta, _TEXTS) for name in ("gap only", "vMF", "contrast only")
    }
    anchor = _best(table, "anchor")
    of_anchor = _at(table, "anchor", anchor["beta"], _TEXTS)
    sentences = [
        f"In {_on(_TEXTS)} at $\\beta$ = {beta:g}, gap only has {of_parts['gap only']}, vMF "
        f"{of_parts['vMF']} and contrast only {of_parts['contrast only']}: **the small gain is "
        "that of a smaller gap.**",
        "The anchor, which has no part in a bottleneck across modalities, gains more and "
        f"elsewhere: {_points(anchor)} in {_on(anchor['measure'])} at $\\beta$ = "
        f"{anchor['beta']:g}, where its {_on(_TEXTS)} changes by {of_anchor}.",
    ]
    return " ".join(sentences)


def light(table: pd.DataFrame, at_zero: Mapping[str, float]) -> str:
    """What vMF does to the gap and to what probes read.

    Args:
        table: of `study.over_beta` on `study.GEOMETRY`, beta > 0.
        at_zero: CLIP's means, by measure.
    """
    vmf = table[table["method"] == "vMF"].set_index(["measure", "beta"]).sort_index()
    said = []
    for beta in (0.1, vmf.index.levels[1].max()):
        gap = vmf.loc[("modality gap", beta), "value"]
        said += [
            f"At $\\beta$ = {beta:g} the gap is {gap:.2f}, with CLIP {at_zero['modality gap']:.2f}."
        ]
        for factor in ("brightness", "colour"):
            row = vmf.loc[(factor, beta)]
            change = (
                f"{100 * row['difference']:+.1f} ({100 * row['low']:+.1f} to "
                f"{100 * row['high']:+.1f})"
            )
            said += [f"Of {factor} probes read {100 * row['value']:.1f} %, a change of {change}."]
    start = f"With CLIP probes read {100 * at_zero['brightness']:.1f} % of brightness"
    start += f" and {100 * at_zero['colour']:.1f} % of colour."
    return f"**The gap goes first, and brightness stays.** {start} {' '.join(said)}"


def other_settings(table: pd.DataFrame) -> pd.DataFrame:
    """vMF at other temperatures and with more photos, a row a setting and beta.

    Args:
        table: of `study.over_beta` on `study.CURVE`, without the condition of the main curve.

    Returns:
        At beta 0 the value in per cent, at others the difference in points with its interval.
    """
    rows = {}
    for row in table.to_dict("records"):
        n_photos = "3,000 photos" if "3,000" in row["condition"] else "600 photos"
        key = f"{n_photos}, temperature {row['temperature']:g}", f"{row['beta']:g}"
        is_clip = row["beta"] == 0
        shown = f"{row['value']:.1f}" if is_clip else _short(row)
        rows.setdefault(key, {})[row["measure"]] = shown
    found = pd.DataFrame(rows).T[CURVE]
    found = found.rename_axis(index=["setting", "beta"])
    return found.sort_index(level="setting", sort_remaining=False, ascending=False)


def _short(row: Mapping[str, Any]) -> str:
    return f"{row['difference']:+.2f} ({row['low']:+.2f} to {row['high']:+.2f})"
