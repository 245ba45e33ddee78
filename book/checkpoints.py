"""Make the two small models that the book loads: `python book/checkpoints.py`, two minutes each on two cores.

The tiny model is trained on the glyphs at its preset and seed 0, once with beta = 0 and once with beta = 0.05 and
the vmf penalty, without sampling noise, and kept in data/checkpoints/clip-tiny and data/checkpoints/cibr-tiny:
weights, tokenizer, preprocessing, the history of the run and its configuration.
"""

import dataclasses
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import cibr
from cibr.utils import project_root, provenance

BETAS = {"clip-tiny": 0.0, "cibr-tiny": 0.05}


def make(folder: Path, beta: float) -> None:
    """Train one model and put it in its place when it is whole."""
    with tempfile.TemporaryDirectory() as scratch:
        config = cibr.configure(
            dataset="glyphs", model="tiny", beta=beta, output_dir=f"{scratch}/run"
        )
        train, validation, _ = cibr.load_splits(config)
        model = cibr.build_model(config, train)
        history = cibr.fit(model, train, validation, config)
        part = Path(scratch, "model")
        model.save_pretrained(part)
        for weights in part.glob("*.safetensors"):
            halve(weights)
        rows = history.drop(columns="seconds")
        rows.to_csv(part / "history.csv", index=False, float_format="%.6g")
        settings = dataclasses.asdict(config)
        del settings["output_dir"]
        about = json.dumps({"configuration": settings, **provenance()}, indent=2)
        (part / "run.json").write_text(about + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(part, folder)
    columns = ["epoch", "clip_loss", "image_to_text_recall@1", "text_to_image_recall@1"]
    print(history[columns].tail(1).to_string(index=False), flush=True)


def halve(weights: Path) -> None:
    """Store floating-point weights in 16 bits, which halves the file; loading widens them again."""
    kept = {
        k: v.half() if v.is_floating_point() else v
        for k, v in load_file(weights).items()
    }
    if not all(torch.isfinite(tensor).all() for tensor in kept.values()):
        raise ValueError(f"a weight of {str(weights)!r} does not fit 16 bits")
    save_file(kept, weights)


if __name__ == "__main__":
    for name, beta in BETAS.items():
        print(f"{name}, beta = {beta:g}:", flush=True)
        make(project_root() / "data" / "checkpoints" / name, beta)
