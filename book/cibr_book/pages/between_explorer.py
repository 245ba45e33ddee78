"""The interactive map of `between`: its numbers, in a piece of a page.

The page needs no kernel and no network: numbers are written into it as JSON, which
book/_static/between.js draws, and a table of all cells follows for readers without scripts.
"""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from cibr_book.pages.between_figures import CELL, COLOURS, gains, winners
from cibr_book.pages.html import filled
from cibr_book.worlds.between import TABLE

_NOISE = "0.01"
_NUMBERS = ["recall", "gain", "low", "high", "shared", "residual"]


def cells(rows: pd.DataFrame) -> dict[str, Any]:
    """What the page draws.

    Args:
        rows: the map's table, from `between`.

    Returns:
        `pairs` and `nuisances`, the axes; `colours` of the methods that can be best; and `cells`,
        each with `pairs, nuisance`, the `best` method and its `gain`, and `methods`: `name`, mean
        test `recall` in per cent, `gain` over CLIP with the same towers in points with its interval
        `low, high`, `shared` and `residual` nats at a noise variance of 0.01 (null for nonlinear
        towers), and the chosen `settings`.
    """
    table = gains(rows)
    best = winners(table).set_index(CELL)
    by = [*CELL, "tower", "method"]
    columns = {"test_recall": "recall"}
    columns |= {f"{kind}_nats_at_{_NOISE}": kind for kind in ("shared", "residual")}
    means = rows.groupby(by, sort=False)[[*columns]].mean().rename(columns=columns).reset_index()
    means = means.merge(table[[*by, "mean", "low", "high"]], on=by, how="left")
    means = means.rename(columns={"mean": "gain"})
    settings = rows.groupby(by, sort=False)["settings"].first().reset_index()
    means = means.merge(settings, on=by)
    made = []
    for (pairs, nuisance), part in means.groupby(CELL):
        winner = best.loc[(pairs, nuisance)]
        methods = [_method(row) for row in part.to_dict("records")]
        cell = {"pairs": pairs, "nuisance": nuisance, "best": winner["method"]}
        made.append(cell | {"gain": round(winner["mean"], 2), "methods": methods})
    axes = {name: sorted(rows[name].unique().tolist()) for name in CELL}
    colours = {name: colour for name, (colour, _) in COLOURS.items()}
    return {"pairs": axes["pairs"], "nuisances": axes["nuisance"], "colours": colours} | {
        "cells": made
    }


def _method(row: dict[str, Any]) -> dict[str, Any]:
    name = row["method"] if row["tower"] == "linear" else f"{row['method']}, nonlinear"
    numbers = {key: None if pd.isna(row[key]) else round(row[key], 2) for key in _NUMBERS}
    return {"name": name} | numbers | {"settings": in_words(row["settings"])}


def in_words(settings: str) -> str:
    """Settings of a row in words: `temperature 0.5, rate 0.02`; what is infinite is left out."""
    values = json.loads(settings)
    return ", ".join(f"{k} {v:g}" for k, v in values.items() if not math.isinf(v))


def as_page(file: Path = TABLE) -> str:
    """The piece of HTML: controls and drawings that the script fills, numbers, and a table."""
    data = cells(pd.read_csv(file))
    return filled(__file__, data, table=_table(data).to_html(index=False, border=0))


def _table(data: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for cell in data["cells"]:
        recalls = {method["name"]: f"{method['recall']:.1f}" for method in cell["methods"]}
        row = {"pairs": f"{cell['pairs']:,}", "nuisance": f"{cell['nuisance']:g}"}
        rows.append(row | {"best": cell["best"], "gain": f"{cell['gain']:+.1f}"} | recalls)
    return pd.DataFrame(rows)
