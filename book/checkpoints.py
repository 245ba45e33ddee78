"""Make the two small models that come with the package: `python book/checkpoints.py`, less than a
minute each on two cores. With `python book/checkpoints.py NAME` only one of `BETAS`.

The tiny model is trained on the glyphs at its preset and seed 0, once with beta = 0 and once with
beta = 0.05 and the vmf penalty, without sampling noise; the second is the run of book/train.ipynb.
Runs that lie finished under runs/ are not repeated. data/checkpoints/clip-tiny and
data/checkpoints/cibr-tiny keep weights in 16 bits, the tokenizer, the history of the run and its
configuration; of a third run, with beta = 1, only history and configuration are kept.
"""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd

import cibr
from cibr.utils import project_root
from cibr_book.provenance import provenance

BETAS = {"clip-tiny": 0.0, "cibr-tiny": 0.05, "beta-1": 1.0}


def _make(folder: Path, beta: float) -> pd.DataFrame:
    """Train one model, or find it trained, copy what the book needs, and return its history."""
    config = cibr.configure(dataset="glyphs", model="tiny", beta=beta)
    train, validation, _ = cibr.load_splits(config)
    model = cibr.build_model(config, train)
    history = cibr.fit(model, train, validation, config).drop(columns="seconds")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if folder.name != "beta-1":
        # Half the size; loading widens weights again.
        model.half().save_pretrained(folder)
    history.to_csv(folder / "history.csv", index=False, float_format="%.6g")
    settings = {
        name: value for name, value in vars(config).items() if name != "output_dir"
    }
    about = json.dumps({"configuration": settings, **provenance()}, indent=2)
    (folder / "run.json").write_text(about + "\n", encoding="utf-8")
    return history


if __name__ == "__main__":
    for name in sys.argv[1:] or BETAS:
        beta = BETAS[name]
        history = _make(project_root() / "data" / "checkpoints" / name, beta)
        row = history[["epoch", "clip_loss", "image_to_text_label_recall@1"]].tail(1)
        print(f"{name}, beta = {beta:g}:\n{row.to_string(index=False)}", flush=True)
