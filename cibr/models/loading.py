"""Models by name: where their files are, and loading them with transformers.

A name is looked for as a folder, in `$CIBR_MODELS/<hub id>`, among the checkpoints that are
shipped with the package, and on the hub. `DualEncoder.save_pretrained` says what a folder holds.
"""

import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.utils import logging

from cibr.utils import nearest, shipped

_BUILT_HERE = ("tiny", "names", "frozen")  # models that are built, not loaded
_CHECKPOINTS = ("clip-tiny", "cibr-tiny", "names-flickr8k")  # shipped with the package
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name


def is_hub_id(name: str) -> bool:
    """Whether a name means the same on every machine: it is `owner/name` and not a folder here."""
    return bool(_HUB_ID.fullmatch(name)) and not os.path.isdir(name)


def resolve(name: str) -> str:
    """The location of a model's files: a local folder, or the name itself as a hub id, not yet
    fetched.

    Raises:
        FileNotFoundError: a name that is neither; the message suggests the nearest known one.
    """
    folders = [Path(name).expanduser()]
    if store := os.environ.get("CIBR_MODELS"):
        folders.append(Path(store, name))
    folders.append(shipped(f"checkpoints/{name}"))
    for folder in folders:
        if name and os.path.isdir(folder):  # False for impossible names, too
            return str(folder)
    if _HUB_ID.fullmatch(name):
        return name
    if name in _BUILT_HERE:
        raise FileNotFoundError(f"{name} is a model to be trained: give the folder of a run")
    known = [*_BUILT_HERE, *_CHECKPOINTS]
    raise FileNotFoundError(
        f"unknown model {name!r}{nearest(name, known) or '.'} Give {', '.join(known)}, a folder, "
        "or a hub id such as openai/clip-vit-base-patch32"
    )


def check_model(name: str) -> None:
    """Raises FileNotFoundError unless a name is tiny, names, frozen, a folder or a hub id."""
    if name not in _BUILT_HERE:
        resolve(name)


def load_pretrained(class_name: str, name: str | Path, **options: Any) -> Any:
    """Calls `from_pretrained` of a class of transformers; code in the files never runs.

    Args:
        class_name: the class, such as `AutoModel`.
        name: a folder, or a hub id.
        options: of `from_pretrained`.

    Raises:
        FileNotFoundError: nothing to load, or files that transformers cannot read; the message says
            where it searched, and the fix.
    """
    source = resolve(str(name))
    options["trust_remote_code"] = False  # if unset, transformers asks, and a pipe may answer yes
    try:
        with _quiet_transformers():
            return getattr(transformers, class_name).from_pretrained(source, **options)
    except (MemoryError, torch.OutOfMemoryError, ImportError):
        raise
    except Exception as error:  # transformers raises nearly anything for damaged files
        cause = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FileNotFoundError(
            f"cannot load {source!r} with transformers.{class_name} ({cause}): give its folder, "
            f"set CIBR_MODELS to one that holds {name}, or connect to the hub"
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """A context without progress bars and messages; `check_weights` reports missing weights."""
    has_bar = logging.is_progress_bar_enabled()
    verbosity = logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bar:
            logging.enable_progress_bar()


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a folder or hub id; FileNotFoundError if it has no vocabulary."""
    tokenizer = load_pretrained("AutoTokenizer", name)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers builds one without files
        raise FileNotFoundError(f"cannot load {str(name)!r}: the tokenizer's files are missing")
    return tokenizer


def load_model(
    name: str | Path, unused: str | tuple[str, ...] = (), class_name: str = "AutoModel"
) -> nn.Module:
    """A model of transformers in float32.

    Args:
        name: a folder, or a hub id.
        unused: prefixes of weights that may be missing because nothing reads them.
        class_name: the class that loads it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: weights that do not fit the model or are not finite.
    """
    model, info = load_pretrained(class_name, name, dtype=torch.float32, output_loading_info=True)
    missing = [key for key in info["missing_keys"] if not key.startswith(unused)]
    check_weights(model, str(name), missing)
    return model


def is_timm(name: str | Path) -> bool:
    """Whether a folder or hub id has a model of timm."""
    return load_pretrained("AutoConfig", name).model_type == "timm_wrapper"


def is_image_classifier(name: str | Path) -> bool:
    """Whether a folder or hub id has an image classification model of timm or transformers."""
    config = load_pretrained("AutoConfig", name)
    if is_timm(name):
        return config.num_labels > 0
    architectures = config.architectures or [""]
    return architectures[0].endswith("ForImageClassification")


def load_image_classifier(name: str | Path) -> tuple[nn.Module, nn.Linear | None]:
    """An image classification model, and its last layer: None unless it is a single linear one.

    Raises:
        FileNotFoundError: there is none.
    """
    model = load_model(name, class_name="AutoModelForImageClassification")
    if is_timm(name):
        layers = [model.timm_model.get_classifier()]
    else:
        layers = [
            layer
            for path, layer in model.named_modules()
            if path.partition(".")[0] in ("classifier", "head") and not any(layer.children())
        ]
    n_classes = model.config.num_labels
    last = [x for x in layers if isinstance(x, nn.Linear) and x.out_features == n_classes]
    return model, last[0] if len(last) == 1 else None


def check_weights(model: nn.Module, source: str, missing: Collection[str]) -> None:
    """Raises ValueError unless a model's weights were all in its files and are finite.

    Args:
        model: with the weights loaded.
        source: its folder or hub id.
        missing: names of its weights that the files lack.
    """
    weights = model.state_dict().items()
    broken = [key for key, x in weights if x.is_floating_point() and not x.isfinite().all()]
    for fault, keys in (("missing", missing), ("not finite", broken)):
        if keys:
            raise ValueError(
                f"{len(keys)} of the weights in {source!r} are {fault}, such as {min(keys)!r}: "
                "save the whole model again, without a wrapper around it, or take an earlier one"
            )
