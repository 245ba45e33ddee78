"""Where the time of a training step of the main job goes.

    python bench/parts.py

The tiny model on glyphs at its preset, with the penalty vmf. Each part is the median of its own
runs, forward and backward; the rest is what a whole step takes beyond them: copies, gradient
clipping, finite checks and the dispatch of small operations.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _measure import medians, seconds, show
from accelerate import Accelerator

import cibr
from cibr.models.features import embed_pairs, prepare
from cibr.train import loop


def main() -> None:
    config = cibr.configure(output_dir=tempfile.mkdtemp())
    train, validation, _ = cibr.load_splits(config)
    model = cibr.build_model(config, train)
    inputs = prepare(model, train, truncate=True)
    held_out = prepare(model, validation, truncate=True)
    n_steps = config.epochs * (len(train) // config.batch_size)
    state = loop.set_up(model.train(), inputs, config, Accelerator(), n_steps)
    image_rows, text_rows = loop.epoch_rows(train, config.seed, 0)
    rows = image_rows[: config.batch_size], text_rows[: config.batch_size]
    batch = inputs[rows]
    image = model.encode_images(batch.images).features.detach().requires_grad_()
    text = model.encode_texts(*batch.texts).features.detach().requires_grad_()
    loss_fn = cibr.CIBRLoss(config.beta, config.penalty)

    def loss() -> None:
        loss_fn(image, text, model.logit_scale.detach(), output_dict=False).backward()

    parts = {
        "whole step": partial(loop.train_step, state, batch),
        "images": lambda: model.encode_images(batch.images).features.sum().backward(),
        "texts": lambda: model.encode_texts(*batch.texts).features.sum().backward(),
        "loss": loss,
        "reports": loss_fn.reports,
        "optimizer": state.optimizer.step,
        "loading": lambda: inputs[rows],
    }
    found = medians({name: partial(seconds, call) for name, call in parts.items()}, 31, n_warm=3)
    whole = found.pop("whole step")
    found["rest"] = whole - sum(found.values())
    table = [
        {"part": name, "ms": 1e3 * value, "% of a step": 100 * value / whole}
        for name, value in found.items()
    ]
    table.append({"part": "whole step", "ms": 1e3 * whole, "% of a step": 100.0})
    show(f"a step of {config.batch_size} pairs, {n_steps} steps in a run", "parts", table, False)
    state.model.train()
    print(f"validation after an epoch: {seconds(partial(embed_pairs, model, held_out)):.2f} s")


if __name__ == "__main__":
    main()
