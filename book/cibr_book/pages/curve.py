"""The interactive information curve of the discrete world: optima over beta and the ambiguity of
the texts.

Each point is the best of gradient ascents from random starts and of all encoders that merge values
of the shared factor. `python -m cibr_book.pages.curve` recomputes book/_static/curve.json, in some
minutes on one core. The page holds its numbers, and book/_static/curve.js draws them, without a
kernel or a network.
"""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from cibr_book.pages.html import filled
from cibr_book.worlds import exact as worlds

FILE = Path(__file__).resolve().parents[2] / "_static" / "curve.json"
_AMBIGUITIES = (0.05, 0.1, 0.2, 0.3, 0.4)  # how often a text names the wrong one of the first pair
_OTHER = 0.05  # and of the second pair
_BETAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.2, 2.0, 3.0, 4.0, 6.0)
_N_CODES = 6
_SEEDS = range(3)


def optimum(ambiguity: float, beta: float) -> dict[str, Any]:
    """Information of the best encoders found for a weight.

    Returns:
        `shared, residual, nuisance` in nats, and `apart`, for both confusable pairs whether the
        image encoder gives them different codes: the total variation between their codes, from 0
        to 1.
    """
    world = worlds.discrete_world((ambiguity, _OTHER))
    candidates = []
    for tables in [*worlds.fit_tables(world, beta, _N_CODES, _SEEDS), *merging_tables(world)]:
        nats = worlds.encoder_informations(world, *tables)
        candidates.append((nats["shared_nats"] - beta * nats["residual_nats"], nats, tables[0]))
    _, nats, images = max(candidates, key=lambda candidate: candidate[0])
    codes = images.unflatten(0, (4, -1)).mean(1)  # of each value of the shared factor
    apart = [(codes[i] - codes[i + 1]).abs().sum().item() / 2 for i in (0, 2)]
    return {
        "shared": round(nats["shared_nats"].item(), 3),
        "residual": round(nats["residual_nats"].item(), 3),
        "nuisance": round(nats["nuisance_image_nats"].item(), 3) + 0.0,
        "apart": [round(distance, 2) for distance in apart],
    }


def merging_tables(world: worlds.DiscreteWorld) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs of encoders whose code is a function of the shared factor's value, up to names."""
    n_shared = int(world.shared.max()) + 1
    labels = itertools.product(range(n_shared), repeat=n_shared)
    # Codes named in the order of their first use: one name for each partition.
    partitions = [codes for codes in labels if _is_in_order(codes)]
    tables = [F.one_hot(torch.tensor(codes), n_shared).double() for codes in partitions]
    for of_images, of_texts in itertools.product(tables, tables):
        yield of_images[world.shared], of_texts[world.text_shared]


def _is_in_order(codes: tuple[int, ...]) -> bool:
    return all(code <= max(codes[:i], default=-1) + 1 for i, code in enumerate(codes))


def curves() -> dict[str, Any]:
    """All optima, and `limits`, the information that image and text share, by ambiguity.

    Gradient ascent may stay at the optimum of a smaller weight, so the optima of all weights are
    candidates for each.
    """
    data = {"ambiguities": _AMBIGUITIES, "betas": _BETAS, "limits": [], "points": []}
    for ambiguity in _AMBIGUITIES:
        joint = worlds.discrete_world((ambiguity, _OTHER)).joint
        data["limits"].append(round(worlds.mutual_information_nats(joint).item(), 3))
        optima = [optimum(ambiguity, beta) for beta in _BETAS]
        data["points"].append(
            [max(optima, key=lambda p: p["shared"] - beta * p["residual"]) for beta in _BETAS]
        )
    return data


def as_page(file: Path = FILE) -> str:
    """HTML with two sliders, a drawing that the script fills, a sentence, and the numbers."""
    return filled(__file__, json.loads(file.read_text("utf-8")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    FILE.write_text(json.dumps(curves()) + "\n", encoding="utf-8")
