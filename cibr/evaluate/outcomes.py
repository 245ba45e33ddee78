"""What a model did on one data set, item by item, and the scores as means over items.

A score is a weighted sum of means: over all items, over the items of each class (mean per-class accuracy), or
over the items of several sets (the mean of a suite). Written so, every score, its interval and its paired
difference come from one rule: items are drawn again within each part. What counts as an item is a picture; the
texts of a picture stay together, and so do pictures that share a text.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

KS = (1, 5, 10)


class Part(NamedTuple):
    """A share of a score: the mean of `values`, one a picture, times `weight`."""

    weight: float
    values: Float[np.ndarray, " n"]


@dataclass(eq=False)
class Outcome:
    """The results of one data set.

    Args:
        kind: `zero-shot` or `retrieval`.
        items: of zero-shot `labels`, `predictions` and `ranks` [n], and `n_classes` []; of retrieval
            `image_ranks` and `image_average_precisions` [n], `text_ranks` and `text_average_precisions` [m], and
            either `text_to_image` [m] or, where pictures share texts, `image_to_text` [n]. Ranks count from 0.
        asked: a digest of the pictures and texts; results with equal ones can be compared item by item.
    """

    kind: str
    items: dict[str, Tensor]
    asked: str

    def parts(self) -> dict[str, list[Part]]:
        """The scores that are means over items, by metric."""
        return self._accuracies() if self.kind == "zero-shot" else self._recalls()

    def _accuracies(self) -> dict[str, list[Part]]:
        ranks, labels = (self.items[name].numpy() for name in ("ranks", "labels"))
        n_classes = int(self.items["n_classes"])
        found = {f"accuracy@{k}": [Part(1.0, (ranks < k).astype(float))] for k in (1, 5) if k <= n_classes}
        by_class = [(ranks[labels == c] < 1).astype(float) for c in np.unique(labels)]
        return found | {"mean_per_class_accuracy": [Part(1 / len(by_class), hits) for hits in by_class]}

    def _recalls(self) -> dict[str, list[Part]]:
        sizes = [len(self.items[f"{side}_ranks"]) for side in ("image", "text")]
        found = {}
        for direction, side in (("image_to_text", "image"), ("text_to_image", "text")):
            ranks, precisions = (self.items[f"{side}_{name}"] for name in ("ranks", "average_precisions"))
            values = {f"recall@{k}": ranks < k for k in KS if k <= min(sizes)}
            for name, each in (values | {"mean_average_precision": precisions}).items():
                found[f"{direction}_{name}"] = [Part(1.0, self._by_unit(each.double().numpy(), side))]
        return found

    def _units(self, side: str) -> Int[np.ndarray, " m"]:
        """What each query is drawn with: its picture or, where pictures share a text, its text."""
        one = "image" if "text_to_image" in self.items else "text"
        if side == one:
            return np.arange(len(self.items[f"{side}_ranks"]))
        return self.items[f"{side}_to_{one}"].numpy()

    def _by_unit(self, values: Float[np.ndarray, " m"], side: str) -> Float[np.ndarray, " n"]:
        """A number a unit whose mean is the mean over queries, and whose spread is that of the mean over queries
        of drawn units, to first order (a ratio, as units have unequal numbers of queries)."""
        units, mean = self._units(side), values.mean()
        counts = np.bincount(units)
        return mean + (np.bincount(units, values) - mean * counts) / counts.mean()

    def median_ranks(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Ranks from 1 and the unit that each query belongs to, by metric: medians are no means over items."""
        if self.kind == "zero-shot":
            return {}
        sides = {"image_to_text": "image", "text_to_image": "text"}
        return {
            f"{direction}_median_rank": (1.0 + self.items[f"{side}_ranks"].numpy(), self._units(side))
            for direction, side in sides.items()
        }

    def n_queries(self, metric: str) -> int:
        """How many queries a metric is over: the texts of text-to-image retrieval, else the pictures."""
        if self.kind == "zero-shot":
            return len(self.items["labels"])
        return len(self.items["text_ranks" if metric.startswith("text") else "image_ranks"])

    def save(self, file: Path, identity: str) -> None:
        """Writes the file beside its place and moves it there."""
        part = file.with_name(file.name + ".part")
        metadata = {"kind": self.kind, "asked": self.asked, "identity": identity}
        save_file({name: tensor.contiguous() for name, tensor in self.items.items()}, part, metadata)
        part.replace(file)


def read_outcome(file: Path) -> tuple[Outcome, str] | None:
    """What `Outcome.save` wrote, with its identity; None where there is no file, or a damaged one."""
    try:
        with safe_open(file, "pt") as stored:
            about = stored.metadata()
            items = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        return Outcome(about["kind"], items, about["asked"]), about["identity"]
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
