"""What ends a run early, and what a run says about batches that teach nothing.

A termination signal (SLURM before its time limit, a cloud machine that is taken back) is noted and answered after
the step that is under way. Embeddings that have collapsed, zero vectors and captions that repeat leave the loss
finite, so that they are looked for and said at the end of an epoch.
"""

import signal
import sys
import threading
import traceback
import warnings
from contextlib import contextmanager
from typing import Any

COLLAPSED = 0.99  # mean cosine between different items
REPEATED = 0.9  # of a batch's captions
EXIT_CODE = 128 + signal.SIGTERM


class Terminated(SystemExit):
    """A run that was told to end, has saved and leaves; as an uncaught exception its exit code is 143."""

    def __init__(self, message: str):
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Notes SIGTERM while it is entered; in another thread than the main one, signals are not its business."""

    def __init__(self):
        self.noted = False

    def __enter__(self) -> "StopRequest":
        self._here = threading.current_thread() is threading.main_thread()
        if self._here:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self._here:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, *_) -> None:
        self.noted = True


@contextmanager
def own_errors(process: int, n_processes: int):
    """Prints the error of one process of several as its own: the others then fail too, for want of an answer, and
    a launcher shows the error of any one of them."""
    try:
        yield
    except Exception:
        if n_processes > 1:
            text = f"process {process} of {n_processes} failed:\n{traceback.format_exc()}"
            print(text, file=sys.stderr, flush=True)
        raise


def degenerate(row: dict[str, Any]) -> dict[str, str]:
    """What is wrong with an epoch that its loss does not show, by the column that tells.

    Args:
        row: of the history, with the columns of `embedding_health`.

    Returns:
        A sentence a column; empty for an epoch like others.
    """
    found = {}
    for side in ("image", "text"):
        cosine = row[f"{side}_mean_cosine"]
        if cosine > COLLAPSED:
            found[f"{side}_mean_cosine"] = (
                f"{side} embeddings are nearly one point: the mean cosine between different ones is {cosine:.4f}; "
                "lower learning_rate or beta, or look for inputs that are all equal"
            )
    if row["zero_vectors"] > 0:
        found["zero_vectors"] = (
            f"{row['zero_vectors']:.2%} of the embeddings are zero vectors, which no loss can place; "
            "look for inputs that are empty or a head whose units have all died"
        )
    if row["repeated_captions"] > REPEATED:
        found["repeated_captions"] = (
            f"{row['repeated_captions']:.0%} of a batch's captions are repeats of others in it, which are no "
            "negatives; lower batch_size or write captions that tell pictures apart"
        )
    return found


def say_once(row: dict[str, Any], said: set[str]) -> None:
    """Warns of what `degenerate` finds and was not said before; `said` takes it in."""
    for column, message in degenerate(row).items():
        if column not in said:
            said.add(column)
            warnings.warn(f"epoch {row['epoch']}: {message}", stacklevel=2)
