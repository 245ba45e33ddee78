"""The interactive figure "move beta": its numbers from the committed table, and the piece of page that holds them.

The page needs no kernel and no network: numbers are written into it as JSON, book/_static/explorer.js draws them,
and the same numbers follow as a table for readers without scripts.
"""

import html
import json
from pathlib import Path
from typing import Any

import pandas as pd

from cibr_book.ablation_figures import CURVES
from cibr_book.figures import STYLES
from cibr_book.tables import HEADLINE, RESULTS, differences, read_table

LEAST_BETAS = 3  # that make a curve
SCORES = ("zero-shot accuracy", "image to text, recall@1", "text to image, recall@1")


def curves(results: Path = RESULTS) -> dict[str, Any]:
    """The penalties over beta as differences to tuned CLIP, seed by seed, in every condition that has curves.

    Args:
        results: the folder of ablation.csv.

    Returns:
        `scores`, their labels, and `conditions`, each with `name`, `clip` (the control's three scores in per cent)
        and `curves`, one a penalty: `name, colour` and `points` over beta with `beta, n_seeds` and, for the three
        scores in points, `difference, low, high`.
    """
    rows = read_table(results / "ablation.csv")
    found = differences(rows[rows["method"].isin(["CLIP", *CURVES])])
    by = ["condition", "method"]
    found = found[found.groupby(by)["beta"].transform("nunique") >= LEAST_BETAS]
    conditions = [_condition(name, part) for name, part in found.groupby("condition")]
    return {
        "scores": [*SCORES],
        "conditions": sorted(conditions, key=lambda each: -len(each["curves"])),
    }


def _condition(name: str, found: pd.DataFrame) -> dict[str, Any]:
    clip = found.groupby("measure")["control"].first()[[*HEADLINE]]
    parts = {
        method: found[found["method"] == method]
        for method in CURVES
        if method in set(found["method"])
    }
    drawn = [
        {
            "name": method,
            "colour": STYLES[method][0],
            "points": [_point(p) for _, p in part.groupby("beta")],
        }
        for method, part in parts.items()
    ]
    return {"name": name, "clip": clip.round(2).tolist(), "curves": drawn}


def _point(rows: pd.DataFrame) -> dict[str, Any]:
    rows = rows.set_index("measure").loc[[*HEADLINE]]
    numbers = {name: rows[name].round(2).tolist() for name in ("difference", "low", "high")}
    return {"beta": float(rows["beta"].iloc[0]), "n_seeds": int(rows["n_seeds"].iloc[0])} | numbers


def as_page(data: dict[str, Any]) -> str:
    """The piece of HTML: controls and drawings that the script fills, the numbers, and the table."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    panels = "".join(
        f'<svg class="explorer-panel" viewBox="0 0 300 240" role="img" aria-labelledby="explorer-title-{i}">'
        f'<title id="explorer-title-{i}">{html.escape(score)} over beta, difference from CLIP</title></svg>'
        for i, score in enumerate(data["scores"])
    )
    return f"""
<div class="explorer" id="explorer" role="group" aria-label="Move beta" hidden>
  <div class="explorer-controls">
    <label for="explorer-condition">Data</label>
    <select id="explorer-condition"></select>
    <label for="explorer-beta">β = <output id="explorer-value" for="explorer-beta"></output></label>
    <input id="explorer-beta" type="range" min="0" value="0" step="1" aria-describedby="explorer-summary">
  </div>
  <fieldset class="explorer-methods" id="explorer-method"><legend>Penalty</legend></fieldset>
  <p id="explorer-summary" class="explorer-said" aria-live="polite"></p>
  <div class="explorer-drawings" id="explorer-drawings">{panels}</div>
</div>
<script type="application/json" id="explorer-data">{text}</script>
<details class="explorer-table"><summary>The same numbers as a table</summary>
<div class="explorer-scroller" tabindex="0" role="region" aria-label="Table of the numbers">{_table(data)}</div>
</details>
"""


def _table(data: dict[str, Any]) -> str:
    heads = ["data", "penalty", "β", *data["scores"], "seeds"]
    lines = ["".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)]
    for condition in data["conditions"]:
        for curve in condition["curves"]:
            for p in curve["points"]:
                numbers = zip(p["difference"], p["low"], p["high"], strict=True)
                texts = [f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" for mean, low, high in numbers]
                cells = [
                    condition["name"],
                    curve["name"],
                    f"{p['beta']:g}",
                    *texts,
                    str(p["n_seeds"]),
                ]
                lines.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    return f'<table class="dataframe">{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'
