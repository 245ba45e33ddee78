"""Which queries a run answers: a bit for each query and metric, all runs of a study in one file.

So an interval over photos, or the photos that a method gains, can be computed for any two runs
without their models.
"""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, UInt8

from cibr.utils import write_atomically

HITS_OF_RUN = "hits.npz"
_RECALLS = [f"{way}_recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
_ACCURACY = "accuracy@1"
_BITS_OF_BYTE = 8
_Bits = UInt8[np.ndarray, " bytes"]


class Hits(NamedTuple):
    """The hits of runs on sets.

    Args:
        owners: of a set with captions the row of each caption's photo; of a set with classes the
            class of each photo.
        bits: of a set by run. With captions, bits are those of the photos and then of the captions,
            each at 1, 5 and 10; with classes, one a photo.
    """

    owners: dict[str, Int[np.ndarray, " items"]]
    bits: dict[str, dict[str, _Bits]]

    @classmethod
    def load(cls, file: Path) -> "Hits":
        """Reads a file of `save`; without one there are none."""
        hits = cls({}, {})
        if not file.exists():
            return hits
        with np.load(file) as arrays:
            for key in arrays:
                if key.endswith("/owners"):
                    name = key.removesuffix("/owners")
                    hits.owners[name] = arrays[key].astype(int)
                    of_runs = zip(arrays[f"{name}/runs"], arrays[f"{name}/bits"], strict=True)
                    hits.bits[name] = {str(run): bits for run, bits in of_runs}
        return hits

    def save(self, file: Path) -> None:
        """Writes a file, runs in order of their ids."""
        arrays = {}
        for name, by_run in self.bits.items():
            runs = sorted(by_run)
            arrays[f"{name}/owners"] = self.owners[name].astype(np.uint16)
            arrays[f"{name}/runs"] = np.array(runs)
            arrays[f"{name}/bits"] = np.stack([by_run[run] for run in runs])
        save_arrays(file, arrays)

    def of_run(self, name: str, run: str) -> dict[str, Bool[np.ndarray, " queries"]]:
        """The hits of a run on a set by metric: `accuracy@1`, or recalls of images and texts."""
        bits = self.bits[name][run]
        owners = self.owners[name]
        if len(bits) == -(-len(owners) // _BITS_OF_BYTE):
            return {_ACCURACY: np.unpackbits(bits, count=len(owners)) > 0}
        n_photos = owners.max() + 1
        hits = np.unpackbits(bits, count=3 * (n_photos + len(owners))) > 0
        of_photos = hits[: 3 * n_photos].reshape(3, -1)
        of_texts = hits[3 * n_photos :].reshape(3, -1)
        return dict(zip(_RECALLS, [*of_photos, *of_texts], strict=True))


def packed(hits: dict[str, Bool[np.ndarray, " queries"]]) -> _Bits:
    """The bits of a set, of hits by metric in the order of `Hits.of_run`."""
    return np.packbits(np.concatenate([*hits.values()]))


def save_arrays(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays by name, compressed and whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, partial(_write, arrays=arrays))


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    with file.open("wb") as opened:
        np.savez_compressed(opened, **arrays)
