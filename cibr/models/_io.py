"""Models by name.

A name is looked for as a folder, in `$CIBR_MODELS/<hub id>`, among the two checkpoints that are
shipped with the package and on the hub. `DualEncoder.save_pretrained` says what a folder holds.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from cibr.utils import nearest, shipped

_BUILT = ("tiny", "frozen")  # kinds of model with a name of their own
_CHECKPOINTS = ("clip-tiny", "cibr-tiny")  # shipped with the package
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name


def reason(error: Exception) -> str:
    """The first line of an error, for a message."""
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
    """The kind of a model to train, `tiny`, `frozen` or `hub`, from its name, without loading it.

    Raises:
        FileNotFoundError: a name that is not `tiny` or `frozen`, a folder or a hub id.
    """
    if name in _BUILT:
        return name
    resolve(name, _BUILT)
    return "hub"


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
        message = f"cannot load {source!r} with transformers.{loader} ({reason(error)}): {fix}"
        raise FileNotFoundError(message) from error


def pretrained(loader: str, source: str | Path) -> Any:
    """As `from_hub`, of a resolved source, with the errors of transformers."""
    options = {"dtype": torch.float32} if loader == "AutoModel" else {}
    loaded = getattr(transformers, loader).from_pretrained(source, **options)
    # transformers makes a tokenizer without a vocabulary, silently.
    if loader == "AutoTokenizer" and len(loaded) <= len(loaded.all_special_tokens):
        raise ValueError("its files hold no vocabulary")
    return loaded
