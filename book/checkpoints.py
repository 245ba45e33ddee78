"""Make the two small models that the book loads: `python book/checkpoints.py`.

The tiny model is trained on the glyphs at the default preset, once with beta = 0 and once with beta = 0.05, seed 0,
and kept in data/checkpoints/clip-tiny and data/checkpoints/cibr-tiny: weights, tokenizer, preprocessing, the history
of the run and its configuration. A model that is there is kept unless `--again` is given. Two minutes each on two
cores.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import cibr
from cibr.models.saving import WEIGHTS
from cibr.paths import project_root
from cibr.train.output import provenance

FOLDER = project_root() / "data" / "checkpoints"
BETAS = {"clip-tiny": 0.0, "cibr-tiny": 0.05}


def make(folder: Path, beta: float) -> None:
    """Train one model and put it in its place when it is whole."""
    with tempfile.TemporaryDirectory() as scratch:
        config = cibr.configure(
            dataset="glyphs", model="tiny", beta=beta, output_dir=scratch
        )
        train, validation, _ = cibr.load_splits(config)
        model = cibr.build_model(config, train)
        history = cibr.fit(model, train, validation, config)
        part = Path(scratch, "model")
        model.save_pretrained(part)
        halve(part / WEIGHTS)
        history.drop(columns="seconds").to_csv(
            part / "history.csv", index=False, float_format="%.6g"
        )
        about = provenance(config)
        del about["configuration"]["output_dir"]
        text = json.dumps(about, indent=2) + "\n"
        (part / "run.json").write_text(text, encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(part, folder)
    columns = ["epoch", "loss", "image_to_text_recall@1", "text_to_image_recall@1"]
    print(history[columns].tail(1).to_string(index=False), flush=True)


def halve(weights: Path) -> None:
    """Store floating-point weights in 16 bits, which halves the file; loading widens them again."""
    kept = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(weights).items()
    }
    if not all(torch.isfinite(tensor).all() for tensor in kept.values()):
        raise ValueError(f"a weight of {str(weights)!r} does not fit 16 bits")
    save_file(kept, weights)


def main() -> None:
    """Make the models that are missing, or all of them again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--again", action="store_true", help="train also what is there")
    again = parser.parse_args().again
    for name, beta in BETAS.items():
        folder = FOLDER / name
        if folder.exists() and not again:
            print(f"{name} is there: kept")
            continue
        print(f"{name}, beta = {beta:g}:", flush=True)
        make(folder, beta)


if __name__ == "__main__":
    main()
