"""The interactive figure "move beta": numbers of the committed table, in a piece of a page.

The page needs no kernel and no network: numbers are written into it as JSON, which
book/_static/explorer.js draws, and they follow as a table for readers without scripts.
"""

from typing import Any

import pandas as pd

from cibr_book.ablation_figures import CURVES
from cibr_book.figures import STYLES
from cibr_book.pages import filled
from cibr_book.tables import HEADLINE, comparisons, read_table

_LEAST_BETAS = 3  # that make a curve
_LEVEL = 0.05  # of the false discovery rate
_NUMBERS = ("difference", "low", "high", "survives")
_SCORES = ("zero-shot accuracy", "mean recall")


def curves() -> dict[str, Any]:
    """The penalties over beta as differences to tuned CLIP, in every condition that has curves.

    Returns:
        `scores`, their labels, and `conditions`, each with `name`, `clip` (the control's scores in
        per cent) and `curves`, one a penalty: `name, colour` and `points` over beta with
        `beta, n_seeds` and, for both scores, `difference, low, high` in points and `survives`,
        whether they differ also after the correction for all comparisons of the study.
    """
    compared = comparisons(read_table("ablation.csv"))
    table = compared[compared["method"].isin(CURVES) & (compared["against"] == "CLIP")]
    n_betas = table.groupby(["condition", "method"])["beta"].transform("nunique")
    parts = table[n_betas >= _LEAST_BETAS].groupby("condition")
    conditions = [_condition(name, part) for name, part in parts]
    conditions.sort(key=lambda condition: -len(condition["curves"]))
    return {"scores": [*_SCORES], "conditions": conditions}


def _condition(name: str, rows: pd.DataFrame) -> dict[str, Any]:
    clip = rows.groupby("measure")["control"].first()[[*HEADLINE]]
    drawn = []
    for method in (name for name in CURVES if name in set(rows["method"])):
        points = [_point(part) for _, part in rows[rows["method"] == method].groupby("beta")]
        drawn.append({"name": method, "colour": STYLES[method][0], "points": points})
    return {"name": name, "clip": clip.round(2).tolist(), "curves": drawn}


def _point(rows: pd.DataFrame) -> dict[str, Any]:
    rows = rows.set_index("measure").loc[[*HEADLINE]]
    numbers = {name: rows[name].round(2).tolist() for name in _NUMBERS[:3]}
    numbers["survives"] = (rows["q_value"] < _LEVEL).tolist()
    return {"beta": float(rows["beta"].iloc[0]), "n_seeds": int(rows["n_seeds"].iloc[0])} | numbers


def as_page() -> str:
    """The piece of HTML: controls and drawings that the script fills, numbers, and a table."""
    data = curves()
    return filled(__file__, data, table=_table(data).to_html(index=False, border=0))


def _table(data: dict[str, Any]) -> pd.DataFrame:
    rows = []
    for condition in data["conditions"]:
        for curve in condition["curves"]:
            for point in curve["points"]:
                numbers = zip(*(point[name] for name in _NUMBERS), strict=True)
                texts = [_text(*of_score) for of_score in numbers]
                beta = f"{point['beta']:g}"
                rows.append([condition["name"], curve["name"], beta, *texts, point["n_seeds"]])
    return pd.DataFrame(rows, columns=["data", "penalty", "β", *_SCORES, "seeds"])


def _text(difference: float, low: float, high: float, survives: bool) -> str:
    return f"{difference:+.2f} [{low:+.2f}, {high:+.2f}]{' **' * survives}"
