"""The interactive figure "move beta": its numbers from the committed table, and the piece of page that holds them.

The page needs no kernel and no network: numbers are written into it as JSON, book/_static/explorer.js draws them,
and the same numbers follow as a table for readers without scripts.
"""

import html
import json
from pathlib import Path
from typing import Any

import pandas as pd

from cibr_book.analysis import mean_intervals
from cibr_book.tables import HEADLINE, RESULTS, control_of, read_table

LEAST_BETAS = 3  # that make a curve, besides CLIP at 0


def curves(results: Path = RESULTS) -> dict[str, Any]:
    """For each condition and method that ran at several betas, the points over beta, means over seeds.

    Args:
        results: the folder of ablation.csv.

    Returns:
        `scores`, their labels, and `methods`, each with `name`, `condition` and `points`: `beta, cosine` (mean of
        unseen pairs), `shared` (InfoNCE bound on unseen pairs, in nats), `scores, low, high` in per cent,
        `n_seeds`; the first point is tuned CLIP.
    """
    rows = read_table(results / "ablation.csv")
    rows = rows.assign(cosine=1 - rows["validation_alignment"] / 2).copy()
    found = []
    for (condition, method, _), own in rows.groupby(["condition", "method", "hyperparameters"], sort=False):
        if own["beta"].nunique() < LEAST_BETAS:
            continue
        clip = control_of(rows[rows["condition"] == condition])
        points = [_point(clip), *(_point(group) for _, group in own.groupby("beta"))]
        found.append({"name": method, "condition": condition, "points": points})
    return {"scores": [f"{name}, accuracy" if "zero" in name else f"{name}, recall@1" for name in HEADLINE]} | {
        "methods": sorted(found, key=lambda curve: -len(curve["points"]))
    }


def _point(rows: pd.DataFrame) -> dict[str, Any]:
    """Means over seeds, with Student's interval."""
    point = {"beta": float(rows["beta"].iloc[0]), "n_seeds": int(rows["seed"].nunique())}
    point["cosine"] = round(float(rows["cosine"].mean()), 4)
    point["shared"] = round(float(rows["validation_mi_lower_bound_nats"].mean()), 4)
    ends = [mean_intervals(rows, ["beta"], name).iloc[0] for name in HEADLINE]
    names = {"scores": "mean", "low": "low", "high": "high"}
    return point | {key: [round(float(end[name]), 2) for end in ends] for key, name in names.items()}


def as_page(data: dict[str, Any]) -> str:
    """The piece of HTML: controls and drawings that the script fills, the numbers, and the table."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f"""
<div class="explorer" id="explorer" role="group" aria-label="Move beta" hidden>
  <div class="explorer-controls">
    <label for="explorer-method">Penalty</label>
    <select id="explorer-method"></select>
    <label for="explorer-beta">β = <output id="explorer-value" for="explorer-beta"></output></label>
    <input id="explorer-beta" type="range" min="0" value="0" step="1" aria-describedby="explorer-summary">
  </div>
  <div class="explorer-drawings">
    <svg id="explorer-plane" viewBox="0 0 340 270" role="img" aria-labelledby="explorer-plane-title">
      <title id="explorer-plane-title">Shared information against the cosine of pairs, one point per beta</title>
    </svg>
    <svg id="explorer-scores" viewBox="0 0 340 270" role="img" aria-labelledby="explorer-scores-title">
      <title id="explorer-scores-title">Scores at this beta, beside those of CLIP</title>
    </svg>
  </div>
  <p id="explorer-summary" class="explorer-said" aria-live="polite"></p>
</div>
<script type="application/json" id="explorer-data">{text}</script>
<details class="explorer-table"><summary>The same numbers as a table</summary>
<div class="explorer-scroller" tabindex="0" role="region" aria-label="Table of the numbers">{_table(data)}</div>
</details>
"""


def _table(data: dict[str, Any]) -> str:
    heads = ["method", "β", "mean cosine", "shared (nats)", *(f"{s} (%)" for s in data["scores"]), "seeds"]
    lines = ["".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)]
    for curve in data["methods"]:
        for point in curve["points"]:
            name = curve["name"] if point["beta"] else "CLIP"
            cells = [f"{name}, {curve['condition']}", f"{point['beta']:g}", f"{point['cosine']:.3f}"]
            cells += [f"{point['shared']:.2f}", *(f"{s:.1f}" for s in point["scores"]), str(point["n_seeds"])]
            lines.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    return f'<table class="dataframe">{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'
