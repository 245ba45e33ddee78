"""`fit`: trains a `DualEncoder` on image-text pairs and saves the model, its history and the
configuration.

`fit` sets up the pairs, the loss and the optimiser and loops over epochs; `train_step` is one step.
Everything random (order, captions, dropout, noise) is keyed by the seed and the step, so a run
resumes from its newest checkpoint with the same result as without the interruption.
"""

import copy
import itertools
import math
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from cibr.data import Pairs
from cibr.losses import CIBRLoss, RegularisedCCA, beta_at
from cibr.losses.penalties import NEEDS_POOLED, NEEDS_PROJECTED
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.features import Batch, Inputs, embed_pairs, prepare
from cibr.train.averaging import WeightAverage
from cibr.train.checkpoint import Progress, RunFolder, run_identity
from cibr.train.config import RunConfig
from cibr.train.grad_cache import GradCache, average_gradient
from cibr.train.sampler import epoch_rows

LARGEST_GRADIENT_NORM = 1.0
CRITIC_LEARNING_RATE = 1e-3
LONGEST_WAIT = timedelta(hours=3)  # for the process that extracts a frozen tower's features

DEGENERATE = {  # values above which a run has collapsed, and the remedy
    "image_mean_cosine": (
        0.99,
        "image embeddings are nearly one point; lower learning_rate or beta",
    ),
    "text_mean_cosine": (0.99, "text embeddings are nearly one point; lower learning_rate or beta"),
    "repeated_captions": (
        0.9,
        "repeats are no negatives; lower batch_size or write captions that differ",
    ),
}


def fit(
    model: DualEncoder,
    train: Pairs,
    validation: Pairs | None,
    config: RunConfig,
    accelerator=None,
    statistic: RegularisedCCA | None = None,
) -> pd.DataFrame:
    """Trains a model in place.

    `config.output_dir` then contains the model (see `DualEncoder.save_pretrained`), `history.csv`
    and `run.json`, and during training also checkpoints. An unfinished run of the same
    configuration resumes; of a finished one the weights and the history are loaded.

    Args:
        model: from `build_model`.
        train: the training pairs.
        validation: the pairs for validation recall, or None.
        config: from `configure`.
        accelerator: an `accelerate.Accelerator`; by default that of `accelerate launch`, or one
            process.
        statistic: for the penalty `anchor` and for `cca_start`; by default CCA of the training
            pairs.

    Returns:
        The history, one row per epoch: `epoch, step, loss, clip_loss, penalty_loss`, the other
        terms of the loss
        in nats, the columns of `embedding_health`, `beta`, `temperature`, `seconds` of training,
        and validation recalls in [0, 1], NaN in epochs without validation.

    Raises:
        ValueError: fewer than two pairs or captions, groups requested of pairs without groups, an
            unusable sample, a penalty on pooled features with a model that has none (SigLIP,
            ALIGN), a learning rate for a tower that the model lacks, a batch that the processes
            cannot share equally, processes that find different checkpoints, an output folder that
            cannot be written, is in use or contains another run; or a GPU that is out of memory,
            with the micro_batch_size to try.
        FloatingPointError: a loss or gradient that is not finite; the message names the last good
        checkpoint.
        SystemExit: with code 143 after SIGTERM; the run is saved and resumes when started again.
        KeyboardInterrupt: the same after Ctrl-C.
    """
    from accelerate.utils import broadcast

    accelerator = accelerator or _launched_processes()
    first, world, device = (
        accelerator.is_main_process,
        accelerator.num_processes,
        accelerator.device,
    )
    _check_pairs(train, config)
    _check_pooled(model, config)
    rows_here = _rows_a_process(config.batch_size, len(train), world)
    batch_size, steps_per_epoch = rows_here * world, len(train) // (rows_here * world)
    identity = run_identity(model, train, validation, config, batch_size)
    run = RunFolder(Path(config.output_dir), identity, writes=first)
    with run.claimed():
        history = run.finished(model)
        if history is not None:
            return history

        # The first process extracts the features of frozen towers, the others read them.
        with accelerator.main_process_first() if model.kind == "frozen" else nullcontext():
            inputs = prepare(
                model, train, config.truncate_texts, device, crop_scale=config.crop_scale
            )
            held_out = validation and prepare(model, validation, config.truncate_texts, device)
        if statistic is None and (config.cca_start or config.penalty == "anchor"):
            statistic = fit_cca(model, inputs, config)
        if config.cca_start:
            model.backbone.image_head.start_at(statistic.image_mean, statistic.image_map)
            model.backbone.text_head.start_at(statistic.text_mean, statistic.text_map)
        cached = (inputs.images, *inputs.texts) if config.feature_noise else ()
        noise = [config.feature_noise * features.std(0).to(device) for features in cached]
        model.to(device)
        broadcast(model.state_dict())  # in place: every process starts from the first one's weights
        loss_fn, critic_optimizer = build_loss(model, config, statistic)
        optimizer, schedule = build_optimizer(model, config, config.epochs * steps_per_epoch)
        parts = {"model": model, "loss": loss_fn, "optimizer": optimizer, "schedule": schedule}
        if critic_optimizer is not None:
            parts["critic_optimizer"] = critic_optimizer
        if config.ema_decay or config.interpolation:
            parts["average"] = WeightAverage(model, config.ema_decay, config.interpolation)
        if (
            config.contrastive == "hycd"
        ):  # in the checkpoint, so that a resumed run has the same teacher
            parts["teacher"] = copy.deepcopy(model).eval().requires_grad_(False)
        at = run.resume(parts, Progress(n_steps=config.epochs * steps_per_epoch))
        _check_equal_steps(at.step, run.folder, accelerator)

        warned: set[str] = set()
        with _progress_bar(at, first) as bar, _noted_signals() as signals:
            rows = rows_of_steps(train, config, at.step, steps_per_epoch, rows_here, accelerator)
            batches = iter(inputs.loader(rows))  # one loader for all epochs, to keep its workers
            for epoch in range(len(at.history), config.epochs):
                model.train()
                for tower in (tower for tower, rate in _towers(model, config) if rate == 0):
                    tower.eval()
                started = time.perf_counter()
                for batch in itertools.islice(batches, (epoch + 1) * steps_per_epoch - at.step):
                    try:
                        train_step(parts, batch, config, at, run, accelerator, noise)
                    except torch.OutOfMemoryError as error:
                        raise ValueError(_out_of_memory(rows_here, config, at, run)) from error
                    at.step += 1
                    at.seconds += time.perf_counter() - started
                    if number := _agreed(signals, accelerator):
                        _leave(number, run.save(parts, at), at, accelerator)
                    is_inside = at.step % steps_per_epoch != 0
                    if (
                        config.checkpoint_every
                        and at.step % config.checkpoint_every == 0
                        and is_inside
                    ):
                        run.save(parts, at)
                    bar.update()
                    clip_loss = at.means()["clip_loss"]
                    bar.set_postfix(refresh=False, epoch=epoch + 1, clip_loss=f"{clip_loss:.3f}")
                    started = time.perf_counter()

                row = {"epoch": epoch + 1, "step": at.step} | at.means()
                row |= {"beta": _beta_now(at, config)}
                row |= {"temperature": 1 / model.logit_scale.item(), "seconds": at.seconds}
                is_due = (epoch + 1) % config.validate_every == 0 or epoch + 1 == config.epochs
                if validation is not None and is_due:
                    with parts["average"].applied(model) if "average" in parts else nullcontext():
                        row |= retrieval_recalls(validation, *embed_pairs(model, held_out))
                at.end_epoch(row)
                if (
                    first and at.step >= at.n_steps / 3
                ):  # embeddings are close together early in training
                    _warn_of_degenerate(row, warned)
                run.save(parts, at)

        if "average" in parts:
            parts["average"].copy_to(model)
        model.eval()
        run.finish(model, config, at)
        accelerator.wait_for_everyone()
        return pd.DataFrame(at.history)


def rows_of_steps(
    train: Pairs, config: RunConfig, step: int, steps_per_epoch: int, rows_here: int, accelerator
) -> Iterator[tuple[Tensor, ...]]:
    """Indices of the images and texts of this process's rows, from a step to the end of the run.

    Args:
        train: the training pairs.
        config: of the run.
        step: the first step, counted from 0.
        steps_per_epoch: steps of an epoch.
        rows_here: rows of a batch in each process.
        accelerator: an `accelerate.Accelerator`.

    Yields:
        Indices of images and of texts for each step, [rows_here] each, and with `crop_scale` the
        seeds of the crops; all are functions of seed, epoch and row.

    Raises:
        ValueError: as `epoch_rows`.
    """
    batch_size = rows_here * accelerator.num_processes
    for epoch in range(step // steps_per_epoch, config.epochs):
        order = epoch_rows(train, config.group_size, config.group_share, config.seed, epoch)
        if config.crop_scale < 1:
            generator = torch.Generator().manual_seed(config.seed + 32_452_843 * (epoch + 1))
            order += (torch.randint(2**62, order[0].shape, generator=generator),)
        for start in range(0, steps_per_epoch * batch_size, batch_size):
            if epoch * steps_per_epoch + start // batch_size >= step:
                first = start + accelerator.process_index * rows_here
                yield tuple(part[first : first + rows_here] for part in order)


def train_step(
    parts: dict,
    batch: Batch,
    config: RunConfig,
    at: Progress,
    run: RunFolder,
    accelerator,
    noise: Sequence[Tensor] = (),
) -> None:
    """One step on a batch: encode, loss, gradients of the whole batch, finite check, step, clamp.

    Args:
        parts: the parts of `RunFolder.save`.
        batch: this process's rows.
        config: of the run.
        at: its progress, to which the terms of the loss are added.
        run: its folder, for messages.
        accelerator: an `accelerate.Accelerator`.
        noise: standard deviations of the noise on cached image and text features, [p] and [q], or
            nothing.

    Raises:
        FloatingPointError: features, a loss or a gradient that are not finite, before the step is
            taken.
    """
    model, loss_fn, optimizer = parts["model"], parts["loss"], parts["optimizer"]
    options = config.micro_batch_size, config.mixed_precision
    needed = config.penalty in NEEDS_POOLED, config.penalty in NEEDS_PROJECTED
    seed = config.seed + 1_000_003 * (at.step + 1)
    torch.manual_seed(seed + 7_919 * accelerator.process_index)  # dropout, of this process's rows
    generator = torch.Generator().manual_seed(seed)  # noise, of the whole batch
    images, texts, labels = batch
    device = accelerator.device
    images, *texts, labels = (
        part.to(device, non_blocking=True) for part in (images, *texts, labels)
    )
    batch = Batch(images, tuple(texts), labels)
    if noise:
        cached = zip((batch.images, *batch.texts), noise, strict=True)
        image, text = (x + scale * torch.randn_like(x) for x, scale in cached)
        batch = Batch(image, (text,), batch.labels)
    loss_fn.beta = _beta_now(at, config)
    optimizer.zero_grad(set_to_none=True)
    try:
        # Encoded in micro-batches, under autocast; the features are those of all processes.
        given = {}
        if "teacher" in parts:
            given["teacher_logits"] = teacher_logits(parts["teacher"], batch, accelerator, *options)
        cache = GradCache(model, batch, accelerator, *options, *needed)
        if "critic_optimizer" in parts:
            critics = parts["critic_optimizer"]
            train_critics(
                loss_fn, critics, config.critic_steps, cache.features, generator, accelerator
            )
        given |= dict(logit_scale=model.logit_scale, labels=cache.labels, generator=generator)
        terms = loss_fn(**cache.features, **given)
        terms["loss"].backward()
        cache.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT_NORM)
        terms |= embedding_health(
            cache.features["image_features"], cache.features["text_features"], cache.labels
        )
        values = dict(zip(terms, torch.stack([*terms.values()]).tolist(), strict=True))
        if not math.isfinite(values["loss"]) or not norm.isfinite():
            named = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
            raise FloatingPointError(f"it is not finite ({named}, gradient norm {norm.item():.6g})")
    except (
        FloatingPointError,
        ValueError,
    ) as error:  # the loss rejects features that are not finite unit vectors
        fix = f"{run.last_good()}. Lower learning_rate or raise temperature"
        raise FloatingPointError(f"step {at.step + 1} was not taken: {error}; {fix}") from error
    at.add(values)
    optimizer.step()
    parts["schedule"].step()
    model.limit_logit_scale()
    if "average" in parts:
        parts["average"].update(model, at.step)


def _beta_now(at: Progress, config: RunConfig) -> float:
    return beta_at(at.step / at.n_steps, config.beta) if config.ramp else config.beta


@torch.no_grad()
def teacher_logits(
    teacher: DualEncoder, batch: Batch, accelerator, *options
) -> Float[Tensor, "n n"]:
    """Logits of a frozen teacher on the whole batch, [n, n], images in rows: cosines times its
    logit_scale.

    The options are those of `GradCache`: micro_batch_size and mixed_precision.
    """
    features = GradCache(teacher, batch, accelerator, *options).features
    return teacher.logit_scale * features["image_features"] @ features["text_features"].T


def _out_of_memory(rows_here: int, config: RunConfig, at: Progress, run: RunFolder) -> str:
    used = config.micro_batch_size or rows_here
    fix = f"Set micro_batch_size to {used // 2}" if used > 1 else "Use a GPU with more memory"
    what = f"step {at.step + 1} was not taken: the GPU is out of memory with {used} rows at once"
    return f"{what}; {run.last_good()}. {fix} and start again: it resumes, exact but for rounding"


def fit_cca(model: DualEncoder, inputs: Inputs, config: RunConfig) -> RegularisedCCA:
    """CCA of the cached features of all pairs, with each image repeated for each of its texts."""
    of_text, (texts,) = inputs.pairs.text_to_image(), inputs.texts
    ridges = config.cca_ridge_image, config.cca_ridge_text
    return RegularisedCCA.fit(inputs.images[of_text], texts, model.dim, *ridges)


def train_critics(
    loss_fn: CIBRLoss,
    optimizer: torch.optim.Optimizer,
    n_steps: int,
    features: dict[str, Tensor],
    generator: torch.Generator,
    accelerator,
) -> None:
    """Trains the critics on the whole batch with fixed encoders; every process takes the same
    steps.

    Args:
        loss_fn: the loss with the critics.
        optimizer: of the critics.
        n_steps: number of steps.
        features: embeddings [n, d] and pooled features [n, p] and [n, q], by the argument names of
            `critic_loss`.
        generator: random generator of the noise.
        accelerator: an `accelerate.Accelerator`.

    Raises:
        FloatingPointError: a gradient that is not finite.
        ValueError: as `CIBRLoss.critic_loss`.
    """
    fixed = {name: leaf.detach() for name, leaf in features.items()}
    for _ in range(n_steps):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_fn.critic_loss(**fixed, generator=generator)
        loss.backward()
        for parameter in loss_fn.parameters():
            average_gradient(parameter, accelerator)
        norm = torch.nn.utils.get_total_norm([p.grad for p in loss_fn.parameters()])
        if not norm.isfinite():
            raise FloatingPointError(
                f"the critics' loss is {loss.item():.6g}, its gradient's norm {norm.item()}"
            )
        optimizer.step()


@torch.no_grad()
def embedding_health(
    image: Float[Tensor, "n d"], text: Float[Tensor, "n d"], labels: Int[Tensor, " n"]
) -> dict[str, Float[Tensor, ""]]:
    """Diagnostics of collapse in a batch: mean cosines between embeddings, and repeated labels.

    Args:
        image: unit vectors, [n, d].
        text: unit vectors, [n, d].
        labels: equal for rows that match, [n].

    Returns:
        `image_mean_cosine` and `text_mean_cosine` between different rows, near 1 if embeddings have
        collapsed to a point; `repeated_captions`, 1 - number of distinct labels / n.
    """
    n, health = len(labels), {}
    for side, features in (("image", image), ("text", text)):
        squares = features.square().sum(1)
        health[f"{side}_mean_cosine"] = (features.sum(0).square().sum() - squares.sum()) / (
            n * (n - 1)
        )
    return health | {"repeated_captions": torch.tensor(1 - len(torch.unique(labels)) / n).to(image)}


def _warn_of_degenerate(row: dict[str, Any], warned: set[str]) -> None:
    """Warns, once each, of degenerate batches that leave the loss finite."""
    for name, (limit, words) in DEGENERATE.items():
        if row[name] > limit and name not in warned:
            warned.add(name)
            warnings.warn(f"epoch {row['epoch']}: {name} is {row[name]:.4f}: {words}", stacklevel=3)


def build_loss(
    model: DualEncoder, config: RunConfig, statistic: RegularisedCCA | None = None
) -> tuple[CIBRLoss, torch.optim.Optimizer | None]:
    """The loss of a run and, if it has critics, their optimiser; the seed sets the critics'
    weights.
    """
    torch.manual_seed(config.seed)
    backbone, names = model.backbone, ("kappa_e", "kappa_b", "text_weight", "sample", "contrastive")
    options = {name: getattr(config, name) for name in names}
    if backbone.dim_image_pooled is not None:
        options["dims"] = (model.dim, backbone.dim_image_pooled, backbone.dim_text_pooled)
    options["statistic"] = statistic
    loss_fn = CIBRLoss(config.beta, config.penalty, **options).to(model.log_logit_scale.device)
    if loss_fn.critics is None:
        return loss_fn, None
    return loss_fn, torch.optim.Adam(loss_fn.critics.parameters(), lr=CRITIC_LEARNING_RATE)


def build_optimizer(
    model: DualEncoder, config: RunConfig, n_steps: int
) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """AdamW, without weight decay for gains, biases and the temperature, and a one-cycle schedule.

    Towers have their own learning rates; one with rate 0 is frozen here.

    Args:
        model: the model, on its device.
        config: of the run.
        n_steps: steps of the whole run.

    Returns:
        The optimiser and the schedule, which is advanced after every step.

    Raises:
        ValueError: a learning rate for a tower that the model lacks.
    """
    rates = {}
    for tower, rate in _towers(model, config):
        rates |= dict.fromkeys(tower.parameters(), rate)
        if rate == 0:
            tower.requires_grad_(False)
    groups: dict[tuple[float, bool], list[Tensor]] = {}
    for parameter in (p for p in model.parameters() if p.requires_grad):
        groups.setdefault((rates.get(parameter, 1.0), parameter.ndim > 1), []).append(parameter)
    parts, peaks = [], []
    for rate, is_matrix in sorted(groups, reverse=True):
        peaks.append(config.learning_rate * rate)
        decay = config.weight_decay if is_matrix else 0.0
        parts.append({"params": groups[rate, is_matrix], "lr": peaks[-1], "weight_decay": decay})
    optimizer = torch.optim.AdamW(parts, betas=(0.9, 0.98))
    n_steps, warm_up = max(2, n_steps), config.warm_up
    if warm_up * n_steps == 1:  # OneCycleLR would divide by zero in a rise of no length
        warm_up /= 2
    return optimizer, OneCycleLR(optimizer, peaks, n_steps, pct_start=warm_up, cycle_momentum=False)


def _towers(model: DualEncoder, config: RunConfig) -> list[tuple[torch.nn.Module, float]]:
    """The towers with their own learning rate, each with its multiple of `learning_rate`."""
    found = []
    for side, of_hub in (("image", "vision_model"), ("text", "text_model")):
        setting, ends = f"{side}_tower_rate", (f"{side}_tower", of_hub)
        if (rate := getattr(config, setting)) != 1:
            tower = next(
                (module for name, module in model.named_modules() if name.endswith(ends)), None
            )
            if tower is None:
                raise ValueError(
                    f"{setting} must be 1: {config.model!r} has no module {' or '.join(ends)}"
                )
            found.append((tower, rate))
    return found


def _check_pooled(model: DualEncoder, config: RunConfig) -> None:
    """Raises ValueError for a penalty on pooled features with a backbone that has none."""
    if config.penalty in NEEDS_POOLED and model.backbone.dim_image_pooled is None:
        lacks = f"model {config.model!r}, a {type(model.backbone.model).__name__}, does not have"
        fix = "choose another, such as 'vmf', or a model like CLIPModel"
        raise ValueError(
            f"the penalty {config.penalty!r} needs a projection on each side, which {lacks}: {fix}"
        )


def _check_pairs(train: Pairs, config: RunConfig) -> None:
    where, n_labels = (
        f"the split {train.split!r} of {train.name!r}",
        len(torch.unique(train.match_labels())),
    )
    if n_labels < 2:
        rule = "match by caption, label or group: a contrast needs two that differ"
        raise ValueError(f"all {len(train)} pairs of {where}, such as {train.texts()[0]!r}, {rule}")
    if config.group_size > 1 and n_labels == len(train) == len(train.texts()):
        have = "neither images of one label nor captions of one image"
        raise ValueError(
            f"{where} has {have}, so no groups: leave group_size at 1, without 'consistency'"
        )
    if config.batch_size > len(train):
        larger = (
            f"batch_size {config.batch_size:,} is larger than the {len(train):,} pairs of {where}"
        )
        warnings.warn(
            f"{larger}, so an epoch is one step: lower batch_size or raise epochs", stacklevel=3
        )


def _rows_a_process(batch_size: int, n_pairs: int, world: int) -> int:
    """Rows of a batch per process, the same for all."""
    wanted = min(batch_size, n_pairs)
    if wanted < world or (batch_size % world and batch_size <= n_pairs):
        fix = "give batch_size a multiple of their number, or use fewer"
        raise ValueError(
            f"a batch of {wanted} pairs cannot be shared equally by {world} processes: {fix}"
        )
    return wanted // world


def _launched_processes():
    """The launcher's processes, or a single one; without an accelerator they share the CPU."""
    from accelerate import Accelerator, InitProcessGroupKwargs

    options = [InitProcessGroupKwargs(timeout=LONGEST_WAIT)]
    return Accelerator(cpu=not torch.accelerator.is_available(), kwargs_handlers=options)


def _check_equal_steps(step: int, folder: Path, accelerator) -> None:
    """Raises ValueError if processes would resume from different steps."""
    steps = accelerator.gather(torch.tensor([step], device=accelerator.device)).tolist()
    if len(set(steps)) > 1:
        found = f"the processes found checkpoints of the steps {', '.join(map(str, steps))} in {str(folder)!r}"
        raise ValueError(f"{found}: output_dir must be on a file system that all nodes share")


@contextmanager
def _noted_signals():
    """Records SIGTERM (from SLURM before its time limit) and Ctrl-C, to stop after the current
    step.

    A second Ctrl-C interrupts at once. Outside the main thread, signals are not handled.
    """
    noted: list[int] = []

    def note(number, frame):
        if number == signal.SIGINT and noted:
            raise KeyboardInterrupt
        noted.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)} if is_main else {}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _agreed(noted: list[int], accelerator) -> int:
    """The signal that any process received, or 0, the same on all processes."""
    number = noted[0] if noted else 0
    return int(accelerator.gather(torch.tensor([number], device=accelerator.device)).max())


def _leave(number: int, saved: Path, at: Progress, accelerator) -> None:
    """Reports where the run is saved and how to resume it, and exits as the signal would."""
    place = f"at step {at.step} of {at.n_steps} in {str(saved)!r}"
    message = f"{signal.Signals(number).name}: the run is saved {place}; start it again to go on"
    if accelerator.is_main_process:
        print(message, file=sys.stderr, flush=True)
    accelerator.wait_for_everyone()
    raise KeyboardInterrupt(message) if number == signal.SIGINT else SystemExit(128 + number)


def _progress_bar(at: Progress, shown: bool) -> tqdm:
    quiet = {} if shown else {"disable": True}  # otherwise TQDM_DISABLE decides
    pause = 0.5 if sys.stderr.isatty() else 10  # s; a notebook or a log keeps every line
    return tqdm(
        total=at.n_steps, initial=at.step, desc="training", unit="step", mininterval=pause, **quiet
    )
