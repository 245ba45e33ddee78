"""The interactive map of `between`: its numbers, in a piece of a page.

The page needs no kernel and no network: numbers are written into it as JSON, which
book/_static/between.js draws.
"""

import json
import math
from typing import Any

import pandas as pd

from cibr_book.pages.figures import COLOURS
from cibr_book.pages.html import filled
from cibr_book.worlds.map import CELL, KEY, TABLE, gains, winners

_MEANS = {"test_recall": "recall", "shared_nats_at_0.01": "shared"}
_MEANS |= {"residual_nats_at_0.01": "residual"}


def _cells(rows: pd.DataFrame) -> dict[str, Any]:
    """What the page draws.

    Args:
        rows: the map's table, from `cibr_book.worlds.map`.

    Returns:
        `pairs` and `nuisances`, the axes; `colours` of the methods that can be best; and `cells`,
        each with `pairs, nuisance`, the `best` method and its `gain`, and `methods`: `name`, mean
        test `recall` in per cent, gain over CLIP in points, `mean`, with its interval `low, high`
        (null for CLIP), `shared` and `residual` nats at a noise variance of 0.01, and the chosen
        `settings`.
    """
    table = gains(rows)
    best = winners(table).set_index(CELL)
    groups = rows.groupby(KEY, sort=False)
    means = groups[list(_MEANS)].mean().rename(columns=_MEANS).reset_index()
    means["settings"] = groups["settings"].first().map(_in_words).to_numpy()
    means = means.merge(table[[*KEY, "mean", "low", "high"]], on=KEY, how="left").round(2)
    means = means.astype(object).where(means.notna(), None).rename(columns={"method": "name"})
    made = []
    for place, part in means.groupby(CELL):
        cell = dict(zip(CELL, place, strict=True))
        cell["best"] = best.loc[place, "method"]
        cell["gain"] = round(best.loc[place, "mean"], 2)
        made.append(cell | {"methods": part.drop(columns=CELL).to_dict("records")})
    pairs, nuisances = (sorted(rows[name].unique().tolist()) for name in CELL)
    return {"pairs": pairs, "nuisances": nuisances, "colours": COLOURS, "cells": made}


def _in_words(settings: str) -> str:
    """Settings of a row in words: `temperature 0.5, rate 0.02`; what is infinite is left out."""
    values = json.loads(settings)
    return ", ".join(f"{k} {v:g}" for k, v in values.items() if not math.isinf(v))


def as_page() -> str:
    """The piece of HTML: controls, a drawing and a table that the script fills, and numbers."""
    return filled(__file__, _cells(pd.read_csv(TABLE)))
