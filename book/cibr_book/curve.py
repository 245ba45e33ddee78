"""The interactive information curve of the discrete world: optima over beta and the ambiguity of the texts.

`python -m cibr_book.curve` makes book/_static/curve.json anew, in some minutes of one core. The page holds its
numbers, and book/_static/curve.js draws them, without a kernel or a network.
"""

import json
from pathlib import Path
from typing import Any

import torch

from cibr_book import worlds

FILE = Path(__file__).resolve().parents[1] / "_static" / "curve.json"
AMBIGUITIES = (0.05, 0.1, 0.2, 0.3, 0.4)  # how often a text names the wrong one of the first pair
BETAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 4.0, 6.0)
OTHER = 0.05  # the same of the second two
N_CODES, N_STARTS = 6, 3


def optimum(ambiguity: float, beta: float) -> dict[str, Any]:
    """What the best encoders found for a weight share and pay.

    Returns:
        `shared, residual, nuisance` in nats, and `apart`, for both confusable pairs whether the image encoder
        gives them different codes: the total variation between their codes, from 0 to 1.
    """
    world, best = worlds.discrete_world((ambiguity, OTHER)), None
    for seed in range(N_STARTS):
        tables = worlds.fit_tables(world, beta, N_CODES, seed)
        found = {
            name: float(value)
            for name, value in worlds.encoder_informations(world, *tables).items()
        }
        objective = found["shared_nats"] - beta * found["residual_nats"]
        if best is None or objective > best[0]:
            best = objective, found, tables[0]
    _, found, images = best
    of_shared = images.unflatten(0, (4, -1)).mean(
        1
    )  # images are numbered by shared factor, then nuisance
    apart = [float((of_shared[i] - of_shared[i + 1]).abs().sum() / 2) for i in (0, 2)]
    names = {
        "shared": "shared_nats",
        "residual": "residual_nats",
        "nuisance": "nuisance_image_nats",
    }
    return {key: round(found[name], 3) for key, name in names.items()} | {
        "apart": [round(x, 2) for x in apart]
    }


def curves() -> dict[str, Any]:
    """All optima, and `limits`, what image and text share, by ambiguity.

    Gradient ascent may stay at what was best for a smaller weight, so that what any weight found is a candidate
    for every other one.
    """
    limits = [
        worlds.mutual_information_nats(worlds.discrete_world((a, OTHER)).joint).item()
        for a in AMBIGUITIES
    ]
    found = [[optimum(a, beta) for beta in BETAS] for a in AMBIGUITIES]
    points = [
        [max(own, key=lambda p: p["shared"] - beta * p["residual"]) for beta in BETAS]
        for own in found
    ]
    return {
        "ambiguities": AMBIGUITIES,
        "betas": BETAS,
        "limits": [round(x, 3) for x in limits],
        "points": points,
    }


def as_page(file: Path = FILE) -> str:
    """The piece of HTML: two sliders, a drawing that the script fills, a sentence, and the numbers."""
    text = json.dumps(json.loads(file.read_text("utf-8")), separators=(",", ":"))
    return f"""
<div class="explorer" id="curve" role="group" aria-label="Move beta and the ambiguity" hidden>
  <div class="explorer-controls">
    <label for="curve-beta">β = <output id="curve-beta-value" for="curve-beta"></output></label>
    <input id="curve-beta" type="range" min="0" step="1" aria-describedby="curve-summary">
    <label for="curve-ambiguity">confused <output id="curve-ambiguity-value"></output></label>
    <input id="curve-ambiguity" type="range" min="0" step="1" aria-describedby="curve-summary">
  </div>
  <p id="curve-summary" class="explorer-said" aria-live="polite"></p>
  <div class="explorer-drawings">
    <svg id="curve-drawing" viewBox="0 0 400 240" role="img" aria-labelledby="curve-title">
      <title id="curve-title">Shared against residual information of the optimum, a point a beta</title>
    </svg>
  </div>
</div>
<script type="application/json" id="curve-data">{text}</script>
"""


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps(curves()) + "\n", encoding="utf-8")
