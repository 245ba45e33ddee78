"""The interactive figure "move beta": its numbers from the committed tables, and the piece of page that holds them.

The page needs no kernel and no network: numbers are written into it as JSON, book/_static/explorer.js draws them,
and the same numbers follow as a table for readers without scripts.
"""

import html
import json
import math
from pathlib import Path

import pandas as pd

from cibr.information.intervals import mean_intervals
from cibr.results import read_rows
from cibr.sweep.arms import DEFAULTS, TUNED, setting_name, tuned_baseline
from cibr.train.config import PRESETS

LEAST_BETAS = 3  # that make a curve, besides CLIP at 0
MEASURED = {  # from runs of the ablation, on pictures that training does not see
    "residual": "validation_residual_nats",
    "shared": "validation_mi_lower_bound_nats",
}
TRIED = {"residual": "last_residual_image_nats"}  # trials tell what training saw last
SCORES = {
    "validation_image_to_text_recall@1": "image to text, recall@1",
    "validation_text_to_image_recall@1": "text to image, recall@1",
    "validation_image_to_text_recall@10": "image to text, recall@10",
    "validation_text_to_image_recall@10": "text to image, recall@10",
}


def curves(results: Path) -> dict:
    """What the figure shows: for each setting and arm the points over beta, means over seeds.

    Curves come from ablation.csv where it has arms with several betas, else from ablation_trials.csv.

    Args:
        results: the folder of the committed tables.

    Returns:
        `source`, the table; `scores`, their labels; `arms`, each with `name`, `setting` and `points`: `beta,
        residual, shared, scores, low, high, n_seeds`, CLIP's first.
    """
    for name in ("ablation.csv", "ablation_trials.csv"):
        rows = _rows(results / name)
        arms = (
            [
                _curve(*group, rows)
                for group in rows.groupby(["setting", "arm"], sort=False)
            ]
            if len(rows)
            else []
        )
        arms = [arm for arm in arms if arm]
        if arms:
            arms.sort(key=lambda arm: not arm["name"].startswith("CIBR"))
            return {"source": name, "scores": list(SCORES.values()), "arms": arms}
    raise FileNotFoundError(
        f"no table with several betas of one arm under {str(results)!r}: python -m cibr.sweep "
        "workflow/flickr8k-trials.yaml makes ablation_trials.csv"
    )


def _rows(file: Path) -> pd.DataFrame:
    if not file.is_file():
        return pd.DataFrame()
    rows = read_rows(file)
    rows = rows[rows["status"] == "ok"].reset_index(drop=True)
    settings = rows["configuration"].map(json.loads)
    # Trials are measured on validation by training itself, runs of the ablation by their diagnostics.
    rows["setting"] = settings.map(setting_name)
    rows["variant"] = settings.map(
        lambda s: json.dumps(
            {
                k: v
                for k, v in s.items()
                if k in TUNED and k not in ("beta", "estimator")
            }
        )
    )
    if MEASURED["shared"] in rows:
        rows = rows[rows[MEASURED["shared"]].notna()]
        return rows.rename(columns={column: name for name, column in MEASURED.items()})
    presets = {name: preset["batch_size"] for name, preset in PRESETS.items()}
    size = settings.map(
        lambda s: (
            s.get("batch_size")
            or presets.get((s["dataset"], s["model"]), presets["*", s["model"]])
        )
    )
    shared = size.map(math.log) - rows["last_clip_loss"]
    return rows.assign(shared=shared, residual=rows[TRIED["residual"]])


def _curve(key: tuple[str, str], own: pd.DataFrame, rows: pd.DataFrame) -> dict | None:
    """One arm's points, of the variant that has most betas, after tuned CLIP of its setting."""
    setting, arm = key
    own = own[own["beta"] > 0]
    if own.empty:
        return None
    most = own.groupby("variant")["beta"].nunique().idxmax()
    own = own[own["variant"] == most]
    baseline = tuned_baseline(rows[rows["setting"] == setting])
    if own["beta"].nunique() < LEAST_BETAS or baseline is None:
        return None
    clip = rows[
        (rows["setting"] == setting)
        & (rows["arm"] == "CLIP")
        & (rows["variant"] == baseline[3])
    ]
    points = [
        _point(0.0, clip),
        *(_point(beta, group) for beta, group in own.groupby("beta")),
    ]
    if "validation_residual_nats" not in rows and _noise(own) != _noise(clip):
        points[0]["residual"] = None  # measured under other noise: another scale
    return {"name": arm, "setting": setting, "points": points}


def _noise(rows: pd.DataFrame) -> set[float]:
    """The concentrations under which training measured the residual of rows."""
    settings = rows["configuration"].map(json.loads)
    return {s.get("kappa_e", DEFAULTS["kappa_e"]) for s in settings}


def _point(beta: float, rows: pd.DataFrame) -> dict:
    """Means over seeds, with Student's interval where there are several."""
    point = {"beta": float(beta), "n_seeds": int(rows["seed"].nunique())}
    point |= {
        name: round(float(rows[name].mean()), 4) for name in ("residual", "shared")
    }
    for end in ("scores", "low", "high"):
        point[end] = []
    for column in SCORES:
        ends = mean_intervals(rows.assign(all=0), ["all"], column).iloc[0]
        values = (ends["mean"], ends["low"], ends["high"])
        for end, value in zip(("scores", "low", "high"), values, strict=True):
            point[end].append(None if pd.isna(value) else round(100 * float(value), 2))
    return point


def as_page(data: dict) -> str:
    """The piece of HTML: controls and drawings that the script fills, the numbers, and the table."""
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return f"""
<div class="explorer" id="explorer" role="group" aria-label="Move beta" hidden>
  <div class="explorer-controls">
    <label for="explorer-arm">Penalty</label>
    <select id="explorer-arm"></select>
    <label for="explorer-beta">β = <output id="explorer-value" for="explorer-beta"></output></label>
    <input id="explorer-beta" type="range" min="0" value="0" step="1" aria-describedby="explorer-said">
  </div>
  <div class="explorer-drawings">
    <svg id="explorer-plane" viewBox="0 0 340 270" role="img" aria-labelledby="explorer-plane-title">
      <title id="explorer-plane-title">Information plane: shared against residual information, a point a beta</title>
    </svg>
    <svg id="explorer-scores" viewBox="0 0 340 270" role="img" aria-labelledby="explorer-scores-title">
      <title id="explorer-scores-title">Accuracies at this beta, beside those of CLIP</title>
    </svg>
  </div>
  <p id="explorer-said" class="explorer-said" aria-live="polite"></p>
</div>
<script type="application/json" id="explorer-data">{text}</script>
<details class="explorer-table"><summary>The same numbers as a table</summary>
<div class="explorer-scroller" tabindex="0" role="region" aria-label="Table of the numbers">{_table(data)}</div>
</details>
"""


def _told(nats: float | None) -> str:
    return "" if nats is None else f"{nats:.1f}"


def _table(data: dict) -> str:
    heads = [
        "penalty",
        "β",
        "residual (nats)",
        "shared (nats)",
        *(f"{s} (%)" for s in data["scores"]),
        "seeds",
    ]
    lines = ["".join(f'<th scope="col">{html.escape(head)}</th>' for head in heads)]
    for arm in data["arms"]:
        for point in arm["points"]:
            name = arm["name"] if point["beta"] else "CLIP"
            cells = [
                f"{name}, {arm['setting']}",
                f"{point['beta']:g}",
                _told(point["residual"]),
            ]
            cells += [
                f"{point['shared']:.2f}",
                *(f"{s:.1f}" for s in point["scores"]),
                str(point["n_seeds"]),
            ]
            lines.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<table class="dataframe">{body}</table>'
