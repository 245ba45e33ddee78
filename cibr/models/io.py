"""Models by name, and folders of models that are complete whenever a save is killed.

A name is looked for as a folder, in `$CIBR_MODELS/<hub id>`, among the two checkpoints that are
shipped with the package and on the hub. `DualEncoder.save_pretrained` says what a folder holds.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging

from cibr.utils import nearest, shipped, sync

_BUILT = ("tiny", "frozen")  # kinds of model with a name of their own
_CHECKPOINTS = ("clip-tiny", "cibr-tiny")  # shipped with the package
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name
_COMPLETE = ".complete"


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A context with a new subfolder, whose files replace those of the folder at the end.

    The subfolder is written to the disk and renamed to `.complete` before its files move to their
    places, which `finish_replacing` resumes. So a kill at any moment, or a full disk, leaves the
    old or the new files complete. Other files in the folder are kept.

    Raises:
        ValueError: the folder cannot be written; its previous files are there.
    """
    new = folder / ".saving"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        finish_replacing(folder)
        shutil.rmtree(new, ignore_errors=True)  # left by a killed save
        new.mkdir()
        yield new
        for path in new.rglob("*"):
            sync(path)
        new.rename(folder / _COMPLETE)
        finish_replacing(folder)
    except (OSError, SafetensorError) as error:
        fix = "make room or choose another output_dir"
        raise ValueError(f"cannot write the model to {str(folder)!r}: {error}; {fix}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def finish_replacing(folder: Path) -> None:
    """Moves the files of a complete save to their places, if a kill left any."""
    complete = folder / _COMPLETE
    for file in [file for file in complete.rglob("*") if file.is_file()]:
        target = folder / file.relative_to(complete)
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # moved by another process that loads this model
            file.replace(target)
    shutil.rmtree(complete, ignore_errors=True)  # folders only


def write_json(file: Path, content: dict) -> None:
    """Writes a JSON file that is indented for reading."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(file: Path) -> dict:
    """Reads a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """What the reader makes of a path; errors, which may be of nearly any type, name the path.

    Raises:
        ValueError: the path is missing or damaged.
    """
    try:
        with quiet_transformers():
            return reader(path)
    except Exception as error:
        problem = f"{str(path)!r} is missing or damaged ({_reason(error)})"
        raise ValueError(f"{problem}: save the model again") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def resolve(name: str, known: Sequence[str] = _CHECKPOINTS) -> str:
    """The location of a model's files: a local folder, or the name itself as a hub id, not yet
    fetched.

    Raises:
        FileNotFoundError: a name that is neither; the message suggests the nearest of the `known`
            names.
    """
    path = Path(name).expanduser()
    folders = [path, Path(os.environ.get("CIBR_MODELS", ".")).expanduser() / name]
    if name in _CHECKPOINTS:
        folders.append(shipped(f"checkpoints/{name}"))
    for folder in folders:
        if name and os.path.isdir(folder):  # False for impossible names, too
            return str(folder)
    if _HUB_ID.fullmatch(name) and not os.path.islink(path):
        return name
    problem = nearest(name, known) or "."
    if os.path.isfile(path) or os.path.islink(path):
        problem = ": it is a file or a broken link."
    fix = f"a hub id such as openai/clip-vit-base-patch32, or {' or '.join(known)}"
    raise FileNotFoundError(f"unknown model {name!r}{problem} Give the folder of a model, {fix}")


def model_kind(name: str) -> str:
    """The kind of a model to train, `tiny`, `frozen` or `clip`, from its name, without loading it.

    Raises:
        FileNotFoundError: a name that is not `tiny` or `frozen`, a folder or a hub id.
    """
    if name in _BUILT:
        return name
    resolve(name, _BUILT)
    return "clip"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """A context without progress bars and loading reports of transformers, such as on unused
    weights.
    """
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def from_hub(loader: str, name: str) -> Any:
    """Calls `from_pretrained` of a class of transformers: AutoModel, in float32, AutoTokenizer or
    AutoImageProcessor.

    Raises:
        FileNotFoundError: nothing to load; the message says where it searched, and the fix.
    """
    source = resolve(name)
    try:
        with quiet_transformers():
            return pretrained(loader, source)
    except Exception as error:  # loaders raise nearly anything
        fix = f"give its folder, set CIBR_MODELS to one that holds {name}, or connect to the hub"
        message = f"cannot load {source!r} with transformers.{loader} ({_reason(error)}): {fix}"
        raise FileNotFoundError(message) from error


def pretrained(loader: str, source: str | Path) -> Any:
    """As `from_hub`, of a resolved source, with the errors of transformers."""
    options = {"dtype": torch.float32} if loader == "AutoModel" else {}
    loaded = getattr(transformers, loader).from_pretrained(source, **options)
    # transformers makes a tokenizer without a vocabulary, silently.
    if loader == "AutoTokenizer" and len(loaded) <= len(loaded.all_special_tokens):
        raise ValueError("its files hold no vocabulary")
    return loaded
