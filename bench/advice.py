"""How good the advice of `cibr compare` is on folders of photos drawn from Flickr8k's training set.

    python bench/advice.py [--photos 600 1500 3000] [--seeds 700 701 702 703 704 705 706 707]

Each seed draws photos with their five captions, splits them as `cibr compare` splits a folder, and
compares the recipes with its defaults. The row of a recipe in `data/results/advice.csv` has its
recall on the held-out photos of the folder, and that of the model that would be saved, trained with
the first seed, on two sets which the comparison never saw: Flickr8k's 1,000 test photos and
coco-mini. `simplest` names the directions for which the recipe is the simplest that is not
detectably worse. A stopped run resumes: rows in the file are not made again.

Two rules to choose the saved model are compared, both by held-out search (text to image): the
simplest recipe, until another is detectably better, and the recipe with the highest recall. The
rule whose models have the higher search recall on Flickr8k's test photos, averaged over the 24
folders, became the default (by 0.1, undecided).
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "book")]

from cibr import compare
from cibr.metrics import paired_difference
from cibr.utils import provenance, write_atomically
from cibr_book.experiments.recipes import SETS, features, picked

RESULTS = ROOT / "data" / "results" / "advice.csv"
WAYS = ["text_to_image_mean", "image_to_text_mean", "mean"]


def simplest(recalls: dict[str, np.ndarray]) -> str:
    """The first recipe, until another is better by the interval over images and seeds."""
    winner, *others = recalls
    for name in others:
        if paired_difference(recalls[winner], recalls[name])[1] > 1e-9:
            winner = name
    return winner


def folder_rows(n_photos: int, seed: int) -> list[dict]:
    """The rows of a folder's recipes."""
    base, inputs = features()
    whole = inputs["train"]
    order = torch.randperm(len(whole.pairs), generator=torch.Generator().manual_seed(seed))
    train, held_out = whole.pairs.subset(order[:n_photos].sort().values).hold_out(50, "test")
    train, validation = train.hold_out(max(50, len(train) // 10))
    train, validation, held_out = (picked(whole, part) for part in (train, validation, held_out))
    names = {*compare.RECIPES} - {"self-training"}
    with TemporaryDirectory() as heads:
        bench = compare.Bench(base, train, validation, Path(heads))
        entries = bench.entries(names, held_out, 8, 3)
    recalls = {
        way: {name: np.stack([v[way] for v in entry.values]) for name, entry in entries.items()}
        for way in WAYS
    }
    winners = {way: simplest(of) for way, of in recalls.items()}
    rows = []
    for name, entry in entries.items():
        row = {"photos": n_photos, "seed": seed, "recipe": name, "commit": provenance()["commit"]}
        row["simplest"] = " ".join(way for way in WAYS if winners[way] == name)
        row |= {f"held_out/{way}": recalls[way][name].mean() for way in WAYS}
        for test in SETS:
            values = compare.image_values(entry.model, inputs[test])
            row |= {f"{test}/{way}": values[way].mean() for way in WAYS}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", nargs="+", type=int, default=[600, 1500, 3000])
    parser.add_argument("--seeds", nargs="+", type=int, default=[*range(700, 708)])
    arguments = parser.parse_args()
    for n_photos in arguments.photos:
        for seed in arguments.seeds:
            done = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame()
            if len(done) and (done[["photos", "seed"]] == [n_photos, seed]).all(axis=1).any():
                continue
            table = pd.concat([done, pd.DataFrame(folder_rows(n_photos, seed))])
            table = table.sort_values(["photos", "seed"], kind="stable")
            write_atomically(RESULTS, partial(table.to_csv, index=False))
            print(f"{n_photos} photos, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
