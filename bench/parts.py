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

import cibr
from cibr.models.features import embed_pairs, prepare


def main() -> None:
    config = cibr.configure(output_dir=tempfile.mkdtemp())
    train, validation, _ = cibr.load_splits(config)
    model = cibr.build_model(config, train)
    held_out = prepare(model, validation, truncate=True)
    n_steps = config.epochs * (len(train) // config.batch_size)
    trainer = cibr.CIBRTrainer(model, config, train)
    trainer.set_up()
    trainer.create_optimizer()
    trainer.state.max_steps = n_steps
    inputs = trainer.inputs
    rows = tuple(part[: config.batch_size] for part in trainer.epoch_rows(0))
    batch = inputs[rows]
    image = model.encode_images(batch.images).features.detach().requires_grad_()
    text = model.encode_texts(*batch.texts).features.detach().requires_grad_()
    loss_fn = cibr.CIBRLoss(config.beta, config.penalty)

    def loss() -> None:
        loss_fn(image, text, model.logit_scale.detach(), output_dict=False).backward()

    parts = {
        "whole step": partial(trainer.training_step, model, batch),
        "images": lambda: model.encode_images(batch.images).features.sum().backward(),
        "texts": lambda: model.encode_texts(*batch.texts).features.sum().backward(),
        "loss": loss,
        "reports": loss_fn.reports,
        "optimizer": trainer.optimizer.step,
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
    print(f"validation after an epoch: {seconds(partial(embed_pairs, model, held_out)):.2f} s")


if __name__ == "__main__":
    main()
