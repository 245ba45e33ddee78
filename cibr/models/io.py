"""The folder format of a `DualEncoder`: written by `save_pretrained`, read by `from_pretrained`,
bit for bit.

    cibr.json                  the format, the backbone's kind and its settings
    cibr.safetensors           every trainable weight, except those of a model of transformers
    preprocessor_config.json   image preprocessing, in the hub's format
    tokenizer.json, ...        the tokenizer, in the hub's format
    image_tower/, text_tower/  the frozen towers (kind `frozen`)
    config.json, model.safetensors  the model of transformers itself (kind `clip`), for its own
    class to load

The folder may have other files, such as a run's history. A save writes to a subfolder, renames it
to `.complete` and moves its files to their places, as does a load that finds it. So a kill at any
moment, or a full disk, leaves the old or the new model complete.
"""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cibr.models import towers

_CONFIG = "cibr.json"
_WEIGHTS = "cibr.safetensors"
_PREPROCESSING = "preprocessor_config.json"
_COMPLETE = ".complete"
_FORMAT = 2


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
        with towers.quiet_transformers():
            _write(model, part)
        for file in part.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())  # durable before the rename
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
    model.tokenizer.save_pretrained(folder)
    if backbone.kind == "frozen":
        backbone.image_tower.save_pretrained(folder / "image_tower")
        backbone.text_tower.save_pretrained(folder / "text_tower")
    if backbone.kind == "clip":
        backbone.model.logit_scale.data.copy_(model.log_logit_scale)  # for its own class to load
        backbone.model.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in _weights(model).items()}, folder / _WEIGHTS)
    config = {"format": _FORMAT, "kind": backbone.kind, "settings": backbone.settings}
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


def holds_model(folder: Path) -> bool:
    """Whether `save` wrote this folder, completely or in part."""
    return any((folder / name).exists() for name in (_COMPLETE, _CONFIG, _WEIGHTS))


def load(cls, folder: Path):
    """Reads a folder that `save` wrote.

    Raises:
        ValueError: a missing or damaged file, named.
    """
    _move_into_place(folder)
    config = _read(folder / _CONFIG, _checked_config)
    kind = config["kind"]
    settings = config["settings"]
    processor = _read(folder / _PREPROCESSING, lambda file: towers.image_processor(_json(file)))
    if kind == "frozen":
        image, text = (_read(folder / name, _model) for name in ("image_tower", "text_tower"))
        backbone = towers.FrozenBackbone(image, text, processor.crop_size, **settings)
    elif kind == "clip":
        backbone = towers.HubBackbone(_read(folder, _model))
    else:
        backbone = _read(folder / _CONFIG, lambda _: towers.TinyBackbone(**settings))
    tokenizer = _read(
        folder / "tokenizer.json", lambda _: transformers.AutoTokenizer.from_pretrained(folder)
    )
    model = cls(backbone, processor, tokenizer)
    _read(folder / _WEIGHTS, lambda file: _set_weights(model, load_file(file)))
    return model.eval()


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    """What the reader makes of a path; errors, which may be of nearly any type, name the path."""
    try:
        with towers.quiet_transformers():
            return reader(path)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        fix = "save the model again"
        raise ValueError(f"{str(path)!r} is missing or damaged ({reason}): {fix}") from error


def _json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def _checked_config(file: Path) -> dict:
    config = _json(file)
    if config["format"] != _FORMAT or config["kind"] not in ("tiny", "frozen", "clip"):
        found = f"format {config['format']} and kind {config['kind']!r}"
        raise ValueError(f"{found}, but this version reads format {_FORMAT}, tiny, frozen and clip")
    return config


def _model(folder: Path) -> torch.nn.Module:
    return transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()


def _set_weights(model, state: dict[str, torch.Tensor]) -> None:
    stored = {name: tensor.shape for name, tensor in state.items()}
    wanted = {name: tensor.shape for name, tensor in _weights(model).items()}
    if differing := stored.items() ^ wanted.items():
        raise ValueError(f"{min(differing)[0]!r} does not fit {_CONFIG}")
    model.load_state_dict(state, strict=False)  # frozen towers have their own files
