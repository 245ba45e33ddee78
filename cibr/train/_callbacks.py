"""What a run does beside its steps: saves at signals, measures time, shows a bar, averages."""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

from cibr.models import DualEncoder


class Bar(ProgressCallback):
    """The progress bar of transformers, without a line for every entry of the log."""

    def on_log(self, args, state, control, **_):
        """Nothing: the entries are in the history."""


class RunCallback(TrainerCallback):
    """Clamps the temperature after a step; saves every `save_steps` steps, at the end of an epoch
    and at a signal, which then ends the run; validates when it is due.

    Args:
        trainer: a `CIBRTrainer`.
    """

    def __init__(self, trainer):
        self.trainer = trainer
        self.received = 0

    def on_epoch_begin(self, args, state, control, **_):
        """Starts the clock."""
        self.started = time.perf_counter()

    def on_step_end(self, args, state, control, model, **_):
        """Clamps the temperature and decides whether to save.

        The save after the last step of an epoch waits for its row of the history.
        """
        model.limit_logit_scale()
        trainer = self.trainer
        now = time.perf_counter()
        trainer.seconds += now - self.started
        self.started = now
        signals = torch.tensor([max(trainer.signals, default=0)], device=args.device)
        self.received = int(trainer.accelerator.gather(signals).max())
        control.should_save |= bool(self.received) or state.global_step % state.save_steps == 0
        control.should_save &= state.global_step % trainer.steps_per_epoch != 0

    def on_epoch_end(self, args, state, control, **_):
        """Saves, and validates when it is due."""
        epoch = state.global_step // self.trainer.steps_per_epoch
        is_due = epoch % self.trainer.config.validate_every == 0
        control.should_evaluate &= is_due or state.global_step >= state.max_steps
        control.should_save = True

    def on_save(self, args, state, control, **_):
        """Ends a run that received a signal, as the signal would."""
        self.started = time.perf_counter()
        if not self.received:
            return
        name = signal.Signals(self.received).name
        folder = self.trainer.run_folder.path / f"checkpoint-{state.global_step}"
        saved = f"saved at step {state.global_step} of {state.max_steps} in {str(folder)!r}"
        is_now = saved if folder.is_dir() else "stopped"  # heads of seconds are not saved
        message = f"{name}: the run is {is_now}; start it again to go on"
        if state.is_world_process_zero:
            tqdm.write(message, file=sys.stderr)
        self.trainer.accelerator.wait_for_everyone()
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + self.received)


class WeightAverage(TrainerCallback):
    """Exponential moving average of the weights after each step, which is validated and kept.

    It is bias-corrected as in Adam, so it does not contain the initial weights. With
    `interpolation`, the initial weights are then mixed in.

    Source: WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903), whose alpha is 1 - interpolation.

    Args:
        decay: decay of the average per step, in [0, 1); 0 for the weights after the last step.
        interpolation: share of the initial weights in the result, in [0, 1).

    Raises:
        ValueError: a number outside its range.
    """

    def __init__(self, decay: float, interpolation: float = 0.0):
        if not (0 <= decay < 1 and 0 <= interpolation < 1):
            given = f"decay is {decay!r} and interpolation {interpolation!r}"
            raise ValueError(f"{given}: give numbers from 0 to less than 1")
        self.decay, self.interpolation = decay, interpolation
        self.settings = {"decay": decay, "interpolation": interpolation}  # of a run's identity
        self.start: dict[str, Tensor] = {}
        self.average: dict[str, Tensor] = {}
        self.own: dict[str, Tensor] = {}

    def on_train_begin(self, args, state, control, model, **_):
        """Takes the initial weights, unless a checkpoint was loaded."""
        if state.global_step == 0:
            self.start = _copied(model)
            self.average = _copied(model)
        for kept in (self.start, self.average):  # those of a checkpoint are on the CPU
            kept |= {
                name: kept[name].to(weights.device) for name, weights in _numbers(model).items()
            }

    @torch.no_grad()
    def on_step_end(self, args, state, control, model, **_):
        """Adds the weights after a step."""
        weight = (1 - self.decay) / (1 - self.decay**state.global_step)
        for name, weights in _numbers(model).items():
            self.average[name].lerp_(weights, weight)

    def on_log(self, args, state, control, model, **_):
        """Puts the average into the model before a validation."""
        if control.should_evaluate and not self.own:
            self.own = _copied(model)
            self._copy_to(model)

    def on_evaluate(self, args, state, control, model, **_):
        """Puts the model's own weights back."""
        model.load_state_dict(self.own, strict=False)
        self.own = {}

    def on_train_end(self, args, state, control, model, **_):
        """Replaces the model's weights by the averaged ones."""
        self._copy_to(model)

    @torch.no_grad()
    def _copy_to(self, model: DualEncoder) -> None:
        for name, weights in _numbers(model).items():
            average = self.average[name]
            if self.interpolation:
                average = average.lerp(self.start[name], self.interpolation)
            weights.copy_(average)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The averages and the initial weights, which a checkpoint keeps."""
        return {"average": self.average, "start": self.start}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Continues from what `state_dict` returned."""
        self.average, self.start = state["average"], state["start"]


def _numbers(model: DualEncoder) -> dict[str, Tensor]:
    """Its own weights without counts, such as the batches that a batch norm has seen."""
    return {name: part for name, part in model.own_weights().items() if part.is_floating_point()}


def _copied(model: DualEncoder) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in _numbers(model).items()}


@contextmanager
def noted_signals() -> Iterator[list[int]]:
    """A context that records SIGTERM (from SLURM before its time limit) and Ctrl-C.

    A run stops after its current step. A second Ctrl-C interrupts at once. Outside the main thread,
    signals are not handled.
    """
    numbers: list[int] = []

    def note(number, frame):
        if number == signal.SIGINT and numbers:
            raise KeyboardInterrupt
        numbers.append(number)

    is_main = threading.current_thread() is threading.main_thread()
    handled = (signal.SIGTERM, signal.SIGINT) if is_main else ()
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
