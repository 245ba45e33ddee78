"""`fit`: trains a `DualEncoder` on image-text pairs and leaves a model folder, a history and the configuration.

Everything random is keyed by the seed and the step: order, captions, dropout and noise. So a run
that was killed goes on from its newest checkpoint as if nothing had happened.
"""

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from cibr.data import Pairs
from cibr.losses import CIBRLoss, beta_at
from cibr.metrics import recall_at_k
from cibr.models import DualEncoder
from cibr.train.checkpoint import newest_checkpoint, remove_checkpoints, write_checkpoint
from cibr.train.config import RunConfig
from cibr.train.inputs import Batch, Inputs, prepare
from cibr.train.output import provenance, writable, write_text
from cibr.train.step import contrastive_backward, encode_images, encode_texts

WARM_UP = 0.15  # of the steps
LARGEST_GRADIENT_NORM = 1.0
KS = (1, 5, 10)


def fit(
    model: DualEncoder,
    train: Pairs,
    validation: Pairs | None,
    config: RunConfig,
    accelerator: Accelerator | None = None,
) -> pd.DataFrame:
    """Trains a model in place.

    `config.output_dir` then holds the model's folder (see `DualEncoder.save_pretrained`), `history.csv` and
    `run.json`. While it trains, checkpoints lie there too; an unfinished run of the same configuration resumes.

    Args:
        model: as `build_model` makes it.
        train: the pairs to train on.
        validation: pairs whose recall is measured after each epoch, or None.
        config: as `configure` makes it.
        accelerator: devices and processes; by default what `accelerate launch` set up, or one process.

    Returns:
        The history, a row an epoch: `epoch, step, loss, clip_loss, penalty_loss`, the other terms of the loss in
        nats, `beta`, `temperature`, `seconds` of training, and validation recalls in [0, 1].

    Raises:
        ValueError: fewer than two pairs, an output folder that cannot be written or that holds an unfinished
            run of another configuration, an unusable sample.
        FloatingPointError: a loss or gradient that is not finite; the last good checkpoint is named.
    """
    if len(train) < 2:
        raise ValueError(f"{train.split} of {train.name} has {len(train)} pair: a contrast needs two at least")
    writable(Path(config.output_dir))
    accelerator = accelerator or Accelerator(mixed_precision=config.mixed_precision)
    run = _Run(model, config, accelerator, prepare(model, train, config.truncate_texts, accelerator.device))
    held_out = None
    if validation is not None:
        held_out = prepare(model, validation, config.truncate_texts, accelerator.device)
    run.resume()
    quiet = {} if accelerator.is_main_process else {"disable": True}  # otherwise TQDM_DISABLE decides
    with tqdm(total=run.n_steps, initial=run.step, desc="training", unit="step", mininterval=1, **quiet) as bar:
        for epoch in range(len(run.history), config.epochs):
            run.train_epoch(epoch, bar)
            if held_out is not None:
                run.history[-1] |= _recalls(model, held_out)
            run.save_epoch()
    run.finish()
    return pd.DataFrame(run.history)


class _Run:
    """The state of a run: model, optimiser, schedule, position and history."""

    def __init__(self, model: DualEncoder, config: RunConfig, accelerator: Accelerator, inputs: Inputs):
        self.model, self.config, self.accelerator, self.inputs = model, config, accelerator, inputs
        self.folder = Path(config.output_dir)
        n, world = len(inputs.pairs), accelerator.num_processes
        batch_size = min(config.batch_size, n) // world
        if batch_size < 1:
            raise ValueError(f"a batch of {min(config.batch_size, n)} pairs cannot be shared by {world} processes")
        self.rows_here, self.batch_size = batch_size, batch_size * world
        self.steps_per_epoch = n // self.batch_size
        self.n_steps = config.epochs * self.steps_per_epoch
        model.to(accelerator.device)
        self.loss_fn = CIBRLoss(
            config.beta,
            config.estimator,
            kappa_e=config.kappa_e,
            kappa_b=config.kappa_b,
            sample=config.beta > 0,
        )
        self.optimizer = torch.optim.AdamW(
            _groups(model, config.weight_decay), lr=config.learning_rate, betas=(0.9, 0.98)
        )
        self.schedule = OneCycleLR(
            self.optimizer,
            config.learning_rate,
            max(2, self.n_steps),
            pct_start=WARM_UP,
            cycle_momentum=False,
        )
        self.history: list[dict[str, Any]] = []
        self.step, self.seconds = 0, 0.0

    def train_epoch(self, epoch: int, bar: tqdm) -> None:
        """One pass over the images, each with one of its texts; appends a row to the history."""
        self.model.train()
        sums: dict[str, float] = {}
        started = time.perf_counter()
        for batch in self.inputs.loader(self._rows(epoch)):
            for name, value in self._train_step(batch).items():
                sums[name] = sums.get(name, 0.0) + value
            bar.update()
            bar.set_postfix(
                epoch=epoch + 1, loss=f"{sums['loss'] / (self.step - epoch * self.steps_per_epoch):.3f}"
            )
        self.seconds += time.perf_counter() - started
        self.history.append(
            {"epoch": epoch + 1, "step": self.step}
            | {name: value / self.steps_per_epoch for name, value in sums.items()}
            | {
                "beta": self._beta(),
                "temperature": 1 / self.model.logit_scale.item(),
                "seconds": self.seconds,
            }
        )

    def _train_step(self, batch) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.config.seed + 1_000_003 * (self.step + 1))
        rank, config = self.accelerator.process_index, self.config
        torch.manual_seed(config.seed + 1_000_003 * (self.step + 1) + 7_919 * rank)
        batch = _to_device(batch, self.accelerator.device)
        self.optimizer.zero_grad(set_to_none=True)
        terms = contrastive_backward(
            self.model,
            self.loss_fn,
            batch,
            self.accelerator,
            beta=self._beta(),
            generator=generator,
            micro_batch_size=config.micro_batch_size,
        )
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_GRADIENT_NORM)
        values = {name: value.item() for name, value in terms.items()}
        if not math.isfinite(values["loss"]) or not torch.isfinite(norm):
            self._stop_non_finite(values, norm.item())
        self.optimizer.step()
        self.model.limit_logit_scale()
        self.schedule.step()
        self.step += 1
        return values

    def _beta(self) -> float:
        return beta_at(self.step / self.n_steps, self.config.beta)

    def _rows(self, epoch: int) -> list[tuple[Tensor, Tensor]]:
        """This process's image and text rows of every batch of an epoch; the same order for any split."""
        generator = torch.Generator().manual_seed(self.config.seed + 15_485_863 * (epoch + 1))
        n, text_to_image = len(self.inputs.pairs), self.inputs.pairs.text_to_image()
        order = torch.randperm(n, generator=generator)
        n_texts = torch.bincount(text_to_image, minlength=n)
        texts = n_texts.cumsum(0) - n_texts + (torch.rand(n, generator=generator) * n_texts).long()
        first = self.accelerator.process_index * self.rows_here
        starts = (i * self.batch_size + first for i in range(self.steps_per_epoch))
        rows = [order[start : start + self.rows_here] for start in starts]
        return [(r, texts[r]) for r in rows]

    def _stop_non_finite(self, values: dict[str, float], norm: float) -> None:
        newest = newest_checkpoint(self.folder / "checkpoints")
        last = f"the last good checkpoint is {str(newest[0])!r}" if newest else "there is no checkpoint yet"
        terms = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        raise FloatingPointError(
            f"step {self.step + 1} is not finite ({terms}, gradient norm {norm:.6g}) and was not taken; {last}. "
            "Lower learning_rate or raise temperature"
        )

    def _identity(self) -> dict[str, Any]:
        """What two runs must share for one to go on where the other stopped."""
        pairs = self.inputs.pairs
        digest = hashlib.sha256(repr((pairs.keys, pairs.captions)).encode()).hexdigest()
        settings = {name: value for name, value in self.config.to_dict().items() if name != "output_dir"}
        return settings | {"pairs": f"{len(pairs):,} with digest {digest[:12]}"}

    def save_epoch(self) -> None:
        """Writes the history and a checkpoint."""
        if not self.accelerator.is_main_process:
            return
        write_checkpoint(
            self.folder / "checkpoints",
            self.step,
            {
                "config": self._identity(),
                "model": self.model.own_state(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "history": self.history,
                "step": self.step,
                "seconds": self.seconds,
            },
        )
        write_text(self.folder / "history.csv", pd.DataFrame(self.history).to_csv(index=False))

    def resume(self) -> None:
        """Takes up the newest readable checkpoint, if there is one.

        Raises:
            ValueError: it belongs to another configuration or other pairs.
        """
        newest = newest_checkpoint(self.folder / "checkpoints")
        if newest is None:
            return
        file, state = newest
        mine = self._identity()
        differing = [
            f"{k} ({state['config'].get(k)!r} there, {v!r} here)"
            for k, v in mine.items()
            if state["config"].get(k) != v
        ]
        if differing:
            raise ValueError(
                f"{str(self.folder)!r} holds an unfinished run of another configuration: {', '.join(differing)}. "
                f"Choose another output_dir, finish that run, or delete {str(file.parent)!r}"
            )
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history, self.step, self.seconds = state["history"], state["step"], state["seconds"]

    def finish(self) -> None:
        """Writes the model's folder and the configuration; the checkpoints are then no longer needed."""
        self.model.eval()
        if self.accelerator.is_main_process:
            self.model.save_pretrained(self.folder)
            write_text(self.folder / "run.json", json.dumps(provenance(self.config), indent=2) + "\n")
            remove_checkpoints(self.folder / "checkpoints")
        self.accelerator.wait_for_everyone()


@torch.no_grad()
def embed_pairs(model: DualEncoder, inputs: Inputs, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """Unit vectors of all images [n, d] and all texts [m, d] of a set, in eval mode, on the CPU."""
    was_training, device = model.training, model.log_logit_scale.device
    model.eval()
    n, m = len(inputs.pairs), len(inputs.labels)
    images = [
        encode_images(model, inputs.image_rows(rows).to(device)) for rows in torch.arange(n).split(batch_size)
    ]
    texts = [
        encode_texts(model, tuple(t.to(device) for t in inputs.text_rows(rows)))
        for rows in torch.arange(m).split(batch_size)
    ]
    model.train(was_training)
    return tuple(torch.cat([e.features.float().cpu() for e in side]) for side in (images, texts))


def _recalls(model: DualEncoder, inputs: Inputs) -> dict[str, float]:
    images, texts = embed_pairs(model, inputs)
    ks = [k for k in KS if k <= min(len(images), len(texts))]
    return recall_at_k(images, texts, inputs.pairs.text_to_image(), ks)


def _groups(model: DualEncoder, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; gains, biases and the temperature do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device), tuple(t.to(device) for t in batch.texts), batch.labels.to(device))
