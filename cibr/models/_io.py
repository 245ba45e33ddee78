"""Models by name.

A name is looked for as a folder, in `$CIBR_MODELS/<hub id>`, among the two checkpoints that are
shipped with the package and on the hub. `DualEncoder.save_pretrained` says what a folder holds.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging

from cibr.utils import nearest, shipped

_BUILT = ("tiny", "frozen")  # kinds of model with a name of their own
_CHECKPOINTS = ("clip-tiny", "cibr-tiny")  # shipped with the package
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name


def is_hub_id(name: str) -> bool:
    """Whether a name means the same on every machine: it is `owner/name` and not a folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not os.path.isdir(name)


def resolve(name: str, known: Sequence[str] = _CHECKPOINTS) -> str:
    """The location of a model's files: a local folder, or the name itself as a hub id, not yet
    fetched.

    Raises:
        FileNotFoundError: a name that is neither; the message suggests the nearest of the `known`
            names.
        ValueError: a folder with a pipe in it, from which reading would never end.
    """
    folders = [Path(name), Path(os.environ.get("CIBR_MODELS", ".")) / name]
    if name in _CHECKPOINTS:
        folders.append(shipped(f"checkpoints/{name}"))
    for folder in map(os.path.expanduser, folders):
        if name and os.path.isdir(folder):  # False for impossible names, too
            for file in filter(Path.is_fifo, Path(folder).iterdir()):
                raise ValueError(f"{str(file)!r} is a pipe: put the model's file in its place")
            return folder
    if _HUB_ID.fullmatch(name):
        return name
    fix = f"a hub id such as openai/clip-vit-base-patch32, or {' or '.join(known)}"
    near = nearest(name, known) or "."
    raise FileNotFoundError(f"unknown model {name!r}{near} Give the folder of a model, {fix}")


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
    has_bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()


class WeightsError(ValueError):
    """Weights that a model cannot be used with: others than its own, or not finite."""


def check_weights(
    model: nn.Module, source: str | Path, missing: Collection[str], others: Collection[str]
) -> None:
    """Raises WeightsError unless a model's weights were all in its files and are finite.

    Args:
        model: with the weights loaded.
        source: its folder or hub id.
        missing: names of its weights that the files lack.
        others: names in the files that it has no place for; they matter if some are missing.
    """
    where = f"the weights in {str(source)!r}"
    if missing:
        found = f"they have {len(others)} others, such as {min(others)!r}" if others else ""
        fix = "save the whole model again, without a wrapper such as DistributedDataParallel"
        what = f"{where} lack {len(missing)} of {type(model).__name__}, such as {min(missing)!r}"
        raise WeightsError(f"{'; '.join(filter(None, [what, found]))}: {fix}")
    for name, weights in model.state_dict().items():
        if weights.is_floating_point() and not weights.isfinite().all():
            fix = "take those of an earlier checkpoint, or train again at a lower learning rate"
            raise WeightsError(f"{where} are not finite, such as {name!r}: {fix}")


def from_hub(loader: str, name: str | Path, unused: str | tuple[str, ...] = ()) -> Any:
    """Calls `from_pretrained` of a class of transformers: AutoModel, in float32, AutoTokenizer or
    AutoImageProcessor.

    Args:
        loader: the class's name.
        name: a folder, or a hub id.
        unused: how the names of weights begin that may be missing, as nothing reads them.

    Raises:
        FileNotFoundError: nothing to load; the message says where it searched, and the fix.
        WeightsError: weights that do not fit the model or are not finite.
    """
    source = resolve(str(name))
    is_model = loader == "AutoModel"
    options = {"dtype": torch.float32, "output_loading_info": True} if is_model else {}
    options |= {"trust_remote_code": False}  # else transformers asks, and a pipe may say yes
    try:
        with quiet_transformers():
            loaded = getattr(transformers, loader).from_pretrained(source, **options)
        # transformers makes a tokenizer without a vocabulary, silently.
        if loader == "AutoTokenizer" and len(loaded) <= len(loaded.all_special_tokens):
            raise ValueError("its files hold no vocabulary")
    except Exception as error:  # loaders raise nearly anything
        fix = f"give its folder, set CIBR_MODELS to one that holds {name}, or connect to the hub"
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        message = f"cannot load {source!r} with transformers.{loader} ({cause}): {fix}"
        raise FileNotFoundError(message) from error
    if not is_model:
        return loaded
    model, info = loaded
    missing = [name for name in info["missing_keys"] if not name.startswith(unused)]
    check_weights(model, source, missing, info["unexpected_keys"])
    return model
