"""`fit`: trains a `DualEncoder` on image-text pairs and saves the model, its history and the
configuration.

`fit` sets up a `TrainState`, resumes, and loops over epochs; `train_step` is one step. Everything
random (order, captions, dropout, noise) is keyed by the seed and the step, so a run resumes from
its newest checkpoint with the same result as without the interruption.
"""

import copy
import math
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast, send_to_device
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from cibr.data import Pairs
from cibr.losses import PENALTIES, CIBRLoss, RegularisedCCA, beta_at
from cibr.losses.cibr import arguments_of
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.features import Batch, Inputs, embed_pairs, prepare
from cibr.train.checkpoint import Progress, RunFolder, noted_signals
from cibr.train.config import NOT_THE_RUN, RunConfig
from cibr.train.grad_cache import GradCache, reduce_gradient
from cibr.utils import digest

_LARGEST_GRADIENT_NORM = 1.0
# Share of the steps in which the learning rate rises to its peak; towers from scratch need longer.
_WARM_UP = {"tiny": 0.45, "frozen": 0.15, "hub": 0.15}
_BETAS = (0.9, 0.98)  # of AdamW, as in CLIP
_CHECKPOINT_SECONDS = 600  # between checkpoints within an epoch
_LONGEST_WAIT = timedelta(hours=3)  # for the process that extracts a frozen tower's features
_DEGENERATE = {  # values above which a run has collapsed, and the remedy
    "image_mean_cosine": (0.99, "image embeddings are nearly one point; lower learning_rate"),
    "text_mean_cosine": (0.99, "text embeddings are nearly one point; lower learning_rate"),
    "repeated_captions": (0.9, "repeats are no negatives; lower batch_size or vary the captions"),
}

Rows = tuple[Int[Tensor, " rows"], Int[Tensor, " rows"]]


@dataclass
class TrainState:
    """Everything that a training step reads or changes.

    Args:
        config: of the run.
        accelerator: an `accelerate.Accelerator`.
        model: the encoders, on their device.
        loss_fn: the loss.
        optimizer: of the model's parameters and those of the loss.
        schedule: of the learning rate, advanced after every step.
        progress: steps taken and epochs finished.
        teacher: the initial model, if the loss needs one.
        average: of the weights, or None.
        noise: standard deviations of the noise on cached image and text features, [p] and [q], or
            nothing.
    """

    config: RunConfig
    accelerator: Any
    model: DualEncoder
    loss_fn: CIBRLoss
    optimizer: torch.optim.Optimizer
    schedule: OneCycleLR
    progress: Progress
    teacher: DualEncoder | None = None
    average: Any = None
    noise: tuple[Tensor, ...] = ()


def fit(
    model: DualEncoder,
    train: Pairs,
    validation: Pairs | None,
    config: RunConfig,
    *,
    accelerator=None,
    cca: RegularisedCCA | None = None,
    order: Callable[[int], Rows] | None = None,
    average: Callable[[DualEncoder], Any] | None = None,
) -> pd.DataFrame:
    """Trains a model in place.

    `config.output_dir` then contains the model (see `DualEncoder.save_pretrained`), `history.csv`
    and `run.json`, and during training also checkpoints. An unfinished run of the same
    configuration, pairs and `order` resumes; of a finished one the weights and the history are
    loaded. A `cca` of your own is not compared.

    Args:
        model: from `build_model`.
        train: the training pairs.
        validation: the pairs for validation recall, or None.
        config: from `configure`.
        accelerator: an `accelerate.Accelerator`; by default that of `accelerate launch`, or one
            process. With `mixed_precision="bf16"` the encoders compute in it, never the loss.
        cca: for `cca_start` and the penalty `anchor`; by default fitted to the training pairs.
        order: image and text of every row of an epoch, counted from 0, as `epoch_rows`, which is
            the default.
        average: makes an average of the model's weights, which is validated and saved in their
            place, before the first step: an object with `update(model, step)`, `applied(model)`,
            `copy_to(model)`, `state_dict` and `load_state_dict`.

    Returns:
        The history, one row per epoch, with `epoch, step, loss, clip_loss, penalty_loss, beta`, the
        reports of the loss, the mean cosine between the embeddings of different images
        (`image_mean_cosine`) and texts (`text_mean_cosine`), near 1 if they have collapsed to a
        point, and the share of `repeated_captions`, all averaged over the epoch's steps;
        `temperature`, `seconds` of training, and validation recalls in [0, 1], NaN in epochs
        without validation.

    Raises:
        ValueError: fewer than two pairs or captions, an unusable sample, a penalty on pooled
            features with a model that has none (SigLIP), a batch that the processes cannot
            share equally, processes that find different checkpoints, an output folder that cannot
            be written, is in use or contains another run; or a GPU that is out of memory, with the
            micro_batch_size to try.
        FloatingPointError: a loss or gradient that is not finite; the message names the last good
            checkpoint.
        SystemExit: with code 143 after SIGTERM; the run is saved and resumes when started again.
        KeyboardInterrupt: the same after Ctrl-C.
    """
    accelerator = accelerator or _launched_processes()
    _check(model, train, config, accelerator)
    order = order or (lambda epoch: epoch_rows(train, config.seed, epoch))
    n_rows = _rows_per_process(config.batch_size, len(train), accelerator.num_processes)
    batch_size = n_rows * accelerator.num_processes
    steps = len(order(0)[0]) // batch_size
    identity = _identity(model, train, validation, config, order(0))
    identity |= {"pairs a step": batch_size, "average": bool(average)}
    identity["precision"] = accelerator.mixed_precision
    run = RunFolder(Path(config.output_dir), identity, writes=accelerator.is_main_process)
    with run.claimed():
        if (history := run.finished(model)) is not None:
            return history
        device = accelerator.device
        # The first process extracts the features of frozen towers, the others read them.
        with accelerator.main_process_first() if model.kind == "frozen" else nullcontext():
            inputs = prepare(model, train, True, device, crop_scale=config.crop_scale)
            held_out = validation and prepare(model, validation, True, device)
        state = set_up(model, inputs, config, accelerator, config.epochs * steps, cca, average)
        state.progress = run.resume(_parts(state), state.progress)
        _check_equal_steps(state, run)
        with _progress_bar(state) as bar, noted_signals() as signals:
            rows = rows_of_steps(order, state, steps, n_rows)
            batches = iter(inputs.loader(rows))  # one for all epochs, to keep its workers
            for epoch in range(len(state.progress.history), config.epochs):
                left = islice(batches, (epoch + 1) * steps - state.progress.step)
                _train_epoch(state, left, run, signals, bar)
                _end_epoch(state, epoch, held_out, run)
                _warn_of_degenerate(state.progress)
        return _finish(state, run)


def train_step(state: TrainState, batch: Batch) -> dict[str, float]:
    """One step: encode, loss, gradients of the whole batch, finite check, clip, step, clamp.

    Args:
        state: of the run; its progress is advanced.
        batch: this process's rows.

    Returns:
        The terms of the loss and its reports.

    Raises:
        FloatingPointError: features, a loss or a gradient that are not finite, before the step is
            taken.
    """
    config, model, loss_fn = state.config, state.model, state.loss_fn
    accelerator = state.accelerator
    number = state.progress.step + 1
    seed = config.seed + 1_000_003 * number
    torch.manual_seed(seed + 7_919 * accelerator.process_index)  # dropout, of these rows
    generator = torch.Generator().manual_seed(seed)  # noise, of the whole batch
    batch = send_to_device(batch, accelerator.device, non_blocking=True)
    batch = _with_noise(batch, state.noise)
    loss_fn.beta = config.beta
    if loss_fn.penalty.ramps:
        loss_fn.beta = beta_at(state.progress.step / state.progress.n_steps, config.beta)
    state.optimizer.zero_grad(set_to_none=True)
    try:
        cache = GradCache(model, batch, accelerator, config.micro_batch_size, loss_fn.needs)
        inputs = cache.features | {"generator": generator}
        if state.teacher is not None:
            inputs["teacher_logits"] = _teacher_logits(state, batch)
        loss_fn.update(**inputs, synchronise=lambda p: reduce_gradient(p, accelerator))
        terms = loss_fn(**inputs, logit_scale=model.logit_scale, labels=cache.labels)
        loss = sum(terms.values())
        loss.backward()
        cache.backward()
        own = loss_fn.trained_parameters()
        for parameter in own:
            reduce_gradient(parameter, accelerator)
        parameters = [*model.parameters(), *own]
        norm = torch.nn.utils.clip_grad_norm_(parameters, _LARGEST_GRADIENT_NORM)
        terms = {"loss": loss} | terms | loss_fn.reports() | _batch_health(cache)
        values = dict(zip(terms, torch.stack([*terms.values()]).tolist(), strict=True))
        if not math.isfinite(values["loss"]) or not norm.isfinite():
            named = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
            raise FloatingPointError(f"it is not finite ({named}, gradient norm {norm.item():.6g})")
    except (FloatingPointError, ValueError) as error:  # the loss refuses what is not finite
        raise FloatingPointError(f"step {number} was not taken: {error}") from error
    state.optimizer.step()
    state.schedule.step()
    model.limit_logit_scale()
    if state.average is not None:
        state.average.update(model, state.progress.step)
    state.progress.add(values | {"beta": loss_fn.beta})
    return values


@torch.no_grad()
def _teacher_logits(state: TrainState, batch: Batch) -> Float[Tensor, "n n"]:
    """Logits of the teacher on the whole batch, images in rows."""
    teacher = state.teacher
    cache = GradCache(teacher, batch, state.accelerator, state.config.micro_batch_size)
    images, texts = cache.features["image_features"], cache.features["text_features"]
    return teacher.logit_scale * images @ texts.T


def _with_noise(batch: Batch, noise: tuple[Tensor, ...]) -> Batch:
    """The batch of cached features with Gaussian noise, if there is any."""
    if not noise:
        return batch
    images, (texts,) = batch.images, batch.texts
    images = images + noise[0] * torch.randn_like(images)
    texts = texts + noise[1] * torch.randn_like(texts)
    return Batch(images, (texts,), batch.labels)


def _train_epoch(
    state: TrainState, batches: Iterable[Batch], run: RunFolder, signals: list[int], bar: tqdm
) -> None:
    """The remaining steps of an epoch; leaves the run if a signal was received."""
    progress = state.progress
    state.model.train()
    started = saved = time.perf_counter()
    for batch in batches:
        try:
            train_step(state, batch)
        except FloatingPointError as error:
            fix = f"{run.last_good()}. Lower learning_rate or raise temperature"
            raise FloatingPointError(f"{error}; {fix}") from error
        except torch.OutOfMemoryError as error:
            raise ValueError(_out_of_memory(state, len(batch.labels), run)) from error
        progress.seconds += time.perf_counter() - started
        received = torch.tensor([*signals, 0], device=state.accelerator.device)[:1]
        if number := int(state.accelerator.gather(received).max()):
            _leave(number, state, run)
        if time.perf_counter() - saved > _CHECKPOINT_SECONDS:
            run.save(_parts(state), progress)
            saved = time.perf_counter()
        bar.update()
        bar.set_postfix(refresh=False, clip_loss=f"{progress.means()['clip_loss']:.3f}")
        started = time.perf_counter()


def _leave(number: int, state: TrainState, run: RunFolder) -> None:
    """Saves a run, reports how to resume it, and exits as the signal would."""
    file = run.save(_parts(state), state.progress)
    place = f"at step {state.progress.step} of {state.progress.n_steps} in {str(file)!r}"
    name = signal.Signals(number).name
    message = f"{name}: the run is saved {place}; start it again to go on"
    if state.accelerator.is_main_process:
        print(message, file=sys.stderr, flush=True)
    state.accelerator.wait_for_everyone()
    raise KeyboardInterrupt(message) if number == signal.SIGINT else SystemExit(128 + number)


def _end_epoch(state: TrainState, epoch: int, held_out: Inputs | None, run: RunFolder) -> None:
    """Adds the row of an epoch to the history, with validation recall if it is due, and saves."""
    model, config, progress = state.model, state.config, state.progress
    row = {"epoch": epoch + 1, "step": progress.step} | progress.means()
    row |= {"temperature": 1 / model.logit_scale.item(), "seconds": progress.seconds}
    is_due = (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs
    if held_out is not None and is_due:
        with state.average.applied(model) if state.average is not None else nullcontext():
            targets = held_out.pairs.retrieval_targets()
            row |= retrieval_recalls(*embed_pairs(model, held_out), *targets)
    progress.end_epoch(row)
    run.save(_parts(state), progress)


def _finish(state: TrainState, run: RunFolder) -> pd.DataFrame:
    if state.average is not None:
        state.average.copy_to(state.model)
    state.model.eval()
    run.finish(state.model, state.config, state.progress)
    state.accelerator.wait_for_everyone()
    return pd.DataFrame(state.progress.history)


def _parts(state: TrainState) -> dict[str, Any]:
    """What a checkpoint stores beside the progress, by name."""
    names = ("model", "loss_fn", "optimizer", "schedule", "teacher", "average")
    parts = {name: getattr(state, name) for name in names}
    return {name: part for name, part in parts.items() if part is not None}


def _out_of_memory(state: TrainState, n_rows: int, run: RunFolder) -> str:
    n_at_once = state.config.micro_batch_size or n_rows
    smaller = f"Set micro_batch_size to {n_at_once // 2}"
    fix = smaller if n_at_once > 1 else "Use a GPU with more memory"
    step = f"step {state.progress.step + 1} was not taken"
    what = f"{step}: the GPU is out of memory with {n_at_once} rows at once"
    return f"{what}; {run.last_good()}. {fix} and start again: it resumes, exact but for rounding"


# Setting up a run


def set_up(
    model: DualEncoder,
    inputs: Inputs,
    config: RunConfig,
    accelerator,
    n_steps: int,
    cca: RegularisedCCA | None = None,
    average: Callable[[DualEncoder], Any] | None = None,
) -> TrainState:
    """The state before the first step; the arguments are those of `fit`.

    Args:
        model: the model, moved to the accelerator's device.
        inputs: of the training pairs.
        config: of the run.
        accelerator: an `accelerate.Accelerator`.
        n_steps: steps of the whole run.
        cca: a statistic in place of CCA of the training pairs.
        average: makes an average of the weights.
    """
    device = accelerator.device
    if cca is None and (config.cca_start or "statistic" in arguments_of(config.penalty)):
        cca = fit_cca(inputs, model.dim, config.cca_ridges)
    if config.cca_start:
        model.backbone.image_head.start_at(cca.image_mean, cca.image_map)
        model.backbone.text_head.start_at(cca.text_mean, cca.text_map)
    model.to(device)
    broadcast(model.state_dict())  # in place: every process starts from the first one's weights
    loss_fn = _build_loss(model, config, cca).to(device)
    optimizer, schedule = _build_optimizer(model, loss_fn, config, n_steps)
    progress = Progress(n_steps)
    state = TrainState(config, accelerator, model, loss_fn, optimizer, schedule, progress)
    if "teacher_logits" in loss_fn.needs:
        state.teacher = copy.deepcopy(model).eval().requires_grad_(False)
    if average is not None:
        state.average = average(model)
    if config.feature_noise:
        cached = (inputs.images, *inputs.texts)
        state.noise = tuple(config.feature_noise * part.std(0).to(device) for part in cached)
    return state


def _build_loss(model: DualEncoder, config: RunConfig, cca: RegularisedCCA | None) -> CIBRLoss:
    """The loss of a run; the seed sets the weights of what its penalty trains."""
    torch.manual_seed(config.seed)
    backbone = model.backbone
    dims = model.dim, backbone.dim_image_pooled, backbone.dim_text_pooled
    provided = {"dims": dims, "statistic": cca}
    options = dict(config.penalty_options)
    options |= {name: provided[name] for name in provided if name in arguments_of(config.penalty)}
    return CIBRLoss(
        config.beta,
        config.penalty,
        kappa_e=config.kappa_e,
        sample=config.sample,
        contrastive=config.contrastive,
        **options,
    )


def _build_optimizer(
    model: DualEncoder, loss_fn: CIBRLoss, config: RunConfig, n_steps: int
) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """AdamW, without weight decay for gains, biases and the temperature, and a one-cycle schedule.

    Args:
        model: the model, on its device.
        loss_fn: the loss, whose parameters are trained too, but for those it updates itself.
        config: of the run.
        n_steps: steps of the whole run.

    Returns:
        The optimiser and the schedule, which is advanced after every step.
    """
    parameters = [*model.parameters(), *loss_fn.trained_parameters()]
    parameters = [p for p in parameters if p.requires_grad]
    matrices = {"params": [p for p in parameters if p.ndim > 1]}
    others = {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}
    options = dict(lr=config.learning_rate, betas=_BETAS, weight_decay=config.weight_decay)
    optimizer = torch.optim.AdamW([matrices, others], **options)
    cycle = dict(total_steps=max(2, n_steps), pct_start=_WARM_UP[model.kind], cycle_momentum=False)
    return optimizer, OneCycleLR(optimizer, config.learning_rate, **cycle)


def fit_cca(inputs: Inputs, dim: int, ridges: tuple[float, float]) -> RegularisedCCA:
    """CCA of the cached features of all pairs, with each image repeated for each of its texts."""
    images = inputs.images[inputs.pairs.text_to_image()]
    return RegularisedCCA.fit(images, inputs.texts[0], dim, *ridges)


def _launched_processes() -> Accelerator:
    """The accelerator of the launcher's processes, or of one; without a GPU they share the CPU."""
    options = [InitProcessGroupKwargs(timeout=_LONGEST_WAIT)]
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=options)


def _rows_per_process(batch_size: int, n_pairs: int, n_processes: int) -> int:
    """Rows of a batch in each process, the same for all."""
    n_rows = min(batch_size, n_pairs)
    if n_rows < n_processes or (batch_size % n_processes and batch_size <= n_pairs):
        cannot = f"{n_processes} processes cannot share a batch of {n_rows} pairs equally"
        raise ValueError(f"{cannot}: give batch_size a multiple of their number, or use fewer")
    return n_rows // n_processes


def epoch_rows(pairs: Pairs, seed: int, epoch: int) -> Rows:
    """All images in random order, each with one of its texts, for an epoch counted from 0.

    It depends only on the seed and the epoch, so it is the same for any number of processes and
    after a resume.

    Returns:
        Indices of images, and of texts in `pairs.texts()`, [rows] each.
    """
    generator = torch.Generator().manual_seed(seed + 15_485_863 * (epoch + 1))
    n_texts = torch.bincount(pairs.text_to_image(), minlength=len(pairs))
    images = torch.randperm(len(pairs), generator=generator)
    drawn = (torch.rand(len(pairs), generator=generator)[images] * n_texts[images]).long()
    return images, (n_texts.cumsum(0) - n_texts)[images] + drawn % n_texts[images]


def rows_of_steps(
    order: Callable[[int], Rows], state: TrainState, steps: int, n_rows: int
) -> Iterator[tuple[Tensor, ...]]:
    """Indices of the images and texts of this process's rows, from the next step to the last.

    Args:
        order: of the rows of an epoch.
        state: of the run.
        steps: steps of an epoch.
        n_rows: rows of a batch in each process.

    Yields:
        Indices of images and of texts for each step, [n_rows] each, and with `crop_scale` the
        seeds of the crops; all are functions of seed, epoch and row.
    """
    batch_size = n_rows * state.accelerator.num_processes
    first_step = state.progress.step
    for epoch in range(first_step // steps, state.config.epochs):
        rows: tuple[Tensor, ...] = order(epoch)
        if state.config.crop_scale < 1:
            generator = torch.Generator()
            generator.manual_seed(state.config.seed + 32_452_843 * (epoch + 1))
            rows += (torch.randint(2**62, rows[0].shape, generator=generator),)
        for step in range(steps):
            if epoch * steps + step >= first_step:
                start = step * batch_size + state.accelerator.process_index * n_rows
                yield tuple(part[start : start + n_rows] for part in rows)


def _check(model: DualEncoder, train: Pairs, config: RunConfig, accelerator) -> None:
    """Refuses a run that cannot train, before anything is prepared."""
    where = f"the split {train.split!r} of {train.name!r}"
    n_labels = len(torch.unique(train.match_labels()))
    if n_labels < 2:
        rule = "match by caption, label or group: a contrast needs two that differ"
        raise ValueError(f"all {len(train)} pairs of {where}, {train.texts()[0]!r}, {rule}")
    if config.batch_size > len(train):
        larger = f"batch_size {config.batch_size:,} is larger than the {len(train):,} pairs"
        advice = "so an epoch is one step: lower batch_size or raise epochs"
        warnings.warn(f"{larger} of {where}, {advice}", stacklevel=3)
    reads_pooled = "image_pooled" in PENALTIES[config.penalty].needs
    if reads_pooled and model.backbone.dim_image_pooled is None:
        lacks = f"{config.model!r}, a {type(model.backbone.model).__name__}, does not have"
        needs = f"the penalty {config.penalty!r} needs a projection on each side, which {lacks}"
        raise ValueError(f"{needs}: choose another, such as 'vmf', or a model like CLIPModel")
    if accelerator.mixed_precision not in ("no", "bf16"):
        fix = "give --mixed_precision bf16 or no"
        raise ValueError(f"mixed precision {accelerator.mixed_precision!r} is not offered: {fix}")


def _check_equal_steps(state: TrainState, run: RunFolder) -> None:
    """Refuses processes that would resume from different steps."""
    step = torch.tensor([state.progress.step], device=state.accelerator.device)
    steps = state.accelerator.gather(step).tolist()
    if len(set(steps)) > 1:
        have = f"the processes have checkpoints of different steps in {str(run.folder)!r}"
        fix = "put output_dir on a file system that all nodes share"
        raise ValueError(f"{have} {tuple(steps)}: {fix}")


def _identity(
    model: DualEncoder, train: Pairs, validation: Pairs | None, config: RunConfig, rows: Rows
) -> dict[str, Any]:
    """What decides the result of a run: configuration, architecture, pairs and their order."""
    run = config.model_dump(mode="json", exclude=NOT_THE_RUN)
    run["architecture"] = f"{model.kind} {model.backbone.settings}"
    for name, pairs in (("training pairs", train), ("validation pairs", validation)):
        if pairs is not None:
            of_pairs = digest(repr((pairs.keys, pairs.captions)))[:12]
            run[name] = f"{len(pairs):,} with digest {of_pairs}"
    run["order"] = digest(torch.cat([part.long() for part in rows]).numpy().tobytes())[:12]
    return run


def _progress_bar(state: TrainState) -> tqdm:
    hidden = {} if state.accelerator.is_main_process else {"disable": True}  # else TQDM_DISABLE
    pause = 0.5 if sys.stderr.isatty() else 10  # s; a notebook or a log keeps every line
    progress = state.progress
    counts = dict(total=progress.n_steps, initial=progress.step, unit="step", mininterval=pause)
    return tqdm(desc="training", **counts, **hidden)


# Health of the embeddings


@torch.no_grad()
def _batch_health(cache: GradCache) -> dict[str, Float[Tensor, ""]]:
    """Diagnostics of collapse in a batch: mean cosines between embeddings, and repeated labels.

    Args:
        cache: with the features and labels of the whole batch.

    Returns:
        `image_mean_cosine` and `text_mean_cosine` between different rows, near 1 if embeddings have
        collapsed to a point; `repeated_captions`, 1 - number of distinct labels / n.
    """
    health = {}
    n = len(cache.labels)
    for side in ("image", "text"):
        features = cache.features[f"{side}_features"]
        others = features.sum(0).square().sum() - features.square().sum(1).sum()
        health[f"{side}_mean_cosine"] = others / (n * (n - 1))
    repeated = 1 - len(torch.unique(cache.labels)) / n
    return health | {"repeated_captions": torch.tensor(repeated).to(features)}


def _warn_of_degenerate(progress: Progress) -> None:
    """Warns of degenerate batches that leave the loss finite, in the first epoch that has them.

    Not in the first third of a run, when embeddings are still close together.
    """
    late = [row for row in progress.history if row["step"] >= progress.n_steps / 3]
    for name, (limit, advice) in _DEGENERATE.items():
        found = [row for row in late if row[name] > limit]
        if found == progress.history[-1:]:
            epoch, value = found[0]["epoch"], found[0][name]
            warnings.warn(f"epoch {epoch}: {name} is {value:.4f}: {advice}", stacklevel=3)
