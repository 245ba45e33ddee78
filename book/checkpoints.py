"""Make the small models that come with the package: `python book/checkpoints.py`, less than a
minute each on two cores. With `python book/checkpoints.py NAME` only one of `CHECKPOINTS`.

`clip-tiny` and `cibr-tiny` are trained on the glyphs at their preset and seed 0, with beta = 0 and
with beta = 0.05 and the vmf penalty. `names-flickr8k` is the start that knows names, fine-tuned
with CLIP's loss on the 3,000 photos of data/photos, whose terms it has. Runs that lie finished
under runs/ are not repeated. Each folder of data/checkpoints keeps weights in 16 bits, the
tokenizer of a tiny model, the history of the run and its configuration.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

import cibr
from cibr.utils import project_root
from cibr_book.provenance import provenance

DATA = project_root() / "data"
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "clip-tiny": {"dataset": "glyphs", "model": "tiny", "beta": 0.0},
    "cibr-tiny": {"dataset": "glyphs", "model": "tiny", "beta": 0.05},
    "names-flickr8k": {"dataset": "photos", "model": "names", "preset": "many-photos"},
}


def _make(folder: Path, settings: dict[str, Any]) -> pd.DataFrame:
    """Train one model, or find it trained, copy what the book needs, and return its history."""
    config = cibr.configure(**settings)
    train, validation, _ = cibr.load_splits(config)
    model = cibr.build_model(config, train)
    history = cibr.fit(model, train, validation, config).drop(columns="seconds")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    model.half().save_pretrained(folder)  # half the size; loading widens weights again
    if config.dataset == "photos":
        shutil.copy(DATA / "photos" / "LICENSE", folder)
    history.to_csv(folder / "history.csv", index=False, float_format="%.6g")
    kept = {name: value for name, value in vars(config).items() if name != "output_dir"}
    about = json.dumps({"configuration": kept, **provenance()}, indent=2)
    (folder / "run.json").write_text(about + "\n", encoding="utf-8")
    return history


if __name__ == "__main__":
    for name in sys.argv[1:] or CHECKPOINTS:
        history = _make(DATA / "checkpoints" / name, CHECKPOINTS[name])
        recalls = history.filter(regex="image_to_text.*recall@1$").columns
        row = history[["epoch", "clip_loss", *recalls]].tail(1)
        print(f"{name}:\n{row.to_string(index=False)}", flush=True)
