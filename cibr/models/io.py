"""Models by name, and the folder format of a `DualEncoder`: written by `save_pretrained`, read by
`from_pretrained`, bit for bit.

    cibr.json                       the format, the backbone's kind and its settings
    cibr.safetensors                every trainable weight, but those of a model of transformers
    preprocessor_config.json        image preprocessing, in the hub's format
    tokenizer.json, ...             the tokenizer, in the hub's format
    image_tower/, text_tower/       the frozen towers (kind `frozen`)
    config.json, model.safetensors  the model of transformers (kind `clip`), for its own class too

The folder may have other files, such as a run's history. A save writes to a subfolder, renames it
to `.complete` and moves its files to their places, as does a load that finds it. So a kill at any
moment, or a full disk, leaves the old or the new model complete.

A name is looked for as a folder, in `$CIBR_MODELS/<hub id>`, among the two checkpoints that are
shipped with the package and on the hub.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from cibr.models import towers
from cibr.utils import nearest, shipped, sync

_BUILT = ("tiny", "frozen")  # kinds of model with a name of their own
_CHECKPOINTS = ("clip-tiny", "cibr-tiny")  # shipped with the package
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")  # owner/name

_CONFIG = "cibr.json"
_WEIGHTS = "cibr.safetensors"
_PREPROCESSING = "preprocessor_config.json"
_COMPLETE = ".complete"
_FORMATS = {"tiny": 3, "frozen": 2, "clip": 2}  # by kind, changed when older files no longer fit


def save(model, folder: Path) -> Path:
    """Writes a model to a folder; other files in it are kept.

    Raises:
        ValueError: the folder cannot be written; the previous model still loads.
    """
    part = folder / ".saving"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _move_into_place(folder)
        shutil.rmtree(part, ignore_errors=True)  # left by a killed save
        part.mkdir()
        with quiet_transformers():
            _write(model, part)
        for path in part.rglob("*"):
            sync(path)  # durable before the rename
        part.rename(folder / _COMPLETE)
        _move_into_place(folder)
    except (OSError, SafetensorError) as error:
        fix = "make room or choose another output_dir"
        raise ValueError(f"cannot write the model to {str(folder)!r}: {error}; {fix}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write(model, folder: Path) -> None:
    backbone = model.backbone
    if model.tokenizer.is_fast:  # the file would hold the padding and truncation of the last call
        model.tokenizer.backend_tokenizer.no_padding()
        model.tokenizer.backend_tokenizer.no_truncation()
    model.tokenizer.save_pretrained(folder)
    if backbone.kind == "frozen":
        backbone.image_tower.save_pretrained(folder / "image_tower")
        backbone.text_tower.save_pretrained(folder / "text_tower")
    if backbone.kind == "clip":
        backbone.model.logit_scale.data.copy_(model.log_logit_scale)  # for its own class to load
        backbone.model.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in _weights(model).items()}, folder / _WEIGHTS)
    config = {"format": _FORMATS[backbone.kind], "kind": backbone.kind}
    config["settings"] = backbone.settings
    for name, content in ((_PREPROCESSING, model.processor.to_dict()), (_CONFIG, config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _weights(model) -> dict[str, torch.Tensor]:
    state = model.own_state()
    return {name: state[name] for name in state if not name.startswith("backbone.model.")}


def _move_into_place(folder: Path) -> None:
    """Moves the files of a complete save to their places; a second call resumes a killed one."""
    complete = folder / _COMPLETE
    for file in [file for file in complete.rglob("*") if file.is_file()]:
        target = folder / file.relative_to(complete)
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # moved by another process that loads this model
            file.replace(target)
    shutil.rmtree(complete, ignore_errors=True)  # folders only


def load(cls, name: str):
    """Builds a model from a folder that `save` wrote, or else from a model of transformers.

    Raises:
        FileNotFoundError: the model, its tokenizer or its image preprocessing is missing.
        ValueError: a missing or damaged file, named; a model that is not a dual encoder.
    """
    folder = Path(_resolve(name))
    if not any((folder / part).exists() for part in (_COMPLETE, _CONFIG, _WEIGHTS)):
        if (folder / "checkpoints").is_dir():
            what = f"{name!r} has no model yet: it is the folder of an unfinished run"
            raise FileNotFoundError(f"{what}; repeat the command that began it")
        return _load_from_hub(cls, name)
    _move_into_place(folder)
    config = _read(folder / _CONFIG, _checked_config)
    kind = config["kind"]
    settings = config["settings"]
    processor = _read(folder / _PREPROCESSING, lambda file: towers.image_processor(_json(file)))
    if kind == "frozen":
        image = _read(folder / "image_tower", lambda tower: _pretrained("AutoModel", tower))
        text = _read(folder / "text_tower", lambda tower: _pretrained("AutoModel", tower))
        backbone = towers.FrozenBackbone(image, text, processor.crop_size, **settings)
    elif kind == "clip":
        backbone = towers.HubBackbone(_read(folder, lambda _: _pretrained("AutoModel", folder)))
    else:
        backbone = _read(folder / _CONFIG, lambda _: towers.TinyBackbone(**settings))
    tokenizer = _read(folder / "tokenizer.json", lambda _: _pretrained("AutoTokenizer", folder))
    model = cls(backbone, processor, tokenizer)
    _read(folder / _WEIGHTS, lambda file: _set_weights(model, load_file(file)))
    return model.eval()


def _load_from_hub(cls, name: str):
    backbone = towers.HubBackbone(from_hub("AutoModel", name))
    processor = towers.image_processor(from_hub("AutoImageProcessor", name).to_dict())
    model = cls(backbone, processor, from_hub("AutoTokenizer", name))
    model.log_logit_scale.data.copy_(backbone.model.logit_scale.data.squeeze())
    return model.eval()


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """What the reader makes of a path; errors, which may be of nearly any type, name the path."""
    try:
        with quiet_transformers():
            return reader(path)
    except Exception as error:
        problem = f"{str(path)!r} is missing or damaged ({_reason(error)})"
        raise ValueError(f"{problem}: save the model again") from error


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def _checked_config(file: Path) -> dict:
    config = _json(file)
    if config["format"] != _FORMATS.get(config["kind"], ""):
        known = ", ".join(f"{number} of {kind}" for kind, number in _FORMATS.items())
        found = f"format {config['format']} of kind {config['kind']!r}"
        raise ValueError(f"{found}, but this version reads format {known}")
    return config


def _set_weights(model, state: dict[str, torch.Tensor]) -> None:
    stored = {name: tensor.shape for name, tensor in state.items()}
    wanted = {name: tensor.shape for name, tensor in _weights(model).items()}
    if differing := stored.items() ^ wanted.items():
        raise ValueError(f"{min(differing)[0]!r} does not fit {_CONFIG}")
    model.load_state_dict(state, strict=False)  # frozen towers have their own files


def _resolve(name: str, known: Sequence[str] = _CHECKPOINTS) -> str:
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
    _resolve(name, _BUILT)
    return "clip"


@contextmanager
def quiet_transformers():
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


def from_hub(loader: str, name: str):
    """Calls `from_pretrained` of a class of transformers: AutoModel, in float32, AutoTokenizer or
    AutoImageProcessor.

    Raises:
        FileNotFoundError: nothing to load; the message says where it searched, and the fix.
    """
    source = _resolve(name)
    try:
        with quiet_transformers():
            return _pretrained(loader, source)
    except Exception as error:  # loaders raise nearly anything
        fix = f"give its folder, set CIBR_MODELS to one that holds {name}, or connect to the hub"
        message = f"cannot load {source!r} with transformers.{loader} ({_reason(error)}): {fix}"
        raise FileNotFoundError(message) from error


def _pretrained(loader: str, source: str | Path):
    options = {"dtype": torch.float32} if loader == "AutoModel" else {}
    loaded = getattr(transformers, loader).from_pretrained(source, **options)
    # transformers makes a tokenizer without a vocabulary, silently.
    if loader == "AutoTokenizer" and len(loaded) <= len(loaded.all_special_tokens):
        raise ValueError("its files hold no vocabulary")
    return loaded
