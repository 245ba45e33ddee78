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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cibr.models import towers

CONFIG, WEIGHTS, PREPROCESSING = "cibr.json", "cibr.safetensors", "preprocessor_config.json"
COMPLETE, SAVING = ".complete", ".saving"
FORMAT = 2


def save(model, folder: Path) -> Path:
    """Writes a model to a folder; other files in it are kept.

    Raises:
        ValueError: the folder cannot be written; the previous model still loads.
    """
    part = folder / SAVING
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _move_into_place(folder)
        shutil.rmtree(part, ignore_errors=True)  # left by a killed save
        part.mkdir()
        with towers.quiet_transformers():
            _write(model, part)
        for file in (file for file in part.rglob("*") if file.is_file()):
            with file.open("rb") as stream:
                os.fsync(stream.fileno())  # durable before the rename
        part.rename(folder / COMPLETE)
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
        backbone.log_logit_scale = model.log_logit_scale.data  # for loading by its own class
        backbone.model.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in _weights(model).items()}, folder / WEIGHTS)
    config = {"format": FORMAT, "kind": backbone.kind, "settings": backbone.settings}
    for name, content in ((PREPROCESSING, model.processor.to_dict()), (CONFIG, config)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _weights(model) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for name, tensor in model.own_state().items()
        if not name.startswith("backbone.model.")
    }


def _move_into_place(folder: Path) -> None:
    """Moves the files of a complete save to their places; a second call resumes after a killed one."""
    complete = folder / COMPLETE
    for file in [file for file in complete.rglob("*") if file.is_file()]:
        target = folder / file.relative_to(complete)
        target.parent.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # moved by another process that loads this model
            file.replace(target)
    shutil.rmtree(complete, ignore_errors=True)  # folders only


def holds_model(folder: Path) -> bool:
    """Whether `save` wrote this folder, completely or in part."""
    return any((folder / name).exists() for name in (COMPLETE, CONFIG, WEIGHTS))


def load(cls, folder: Path):
    """Reads a folder that `save` wrote.

    Raises:
        ValueError: a missing or damaged file, named.
    """
    _move_into_place(folder)
    with _reading(folder / CONFIG) as file:
        config = json.loads(file.read_text(encoding="utf-8"))
        found, kind, settings = config["format"], config["kind"], config["settings"]
    if found != FORMAT:
        raise ValueError(
            f"{str(folder)!r} has format {found!r} and this version reads {FORMAT}: train it again"
        )
    backbone = _build_backbone(kind, settings, folder)
    with _reading(folder / PREPROCESSING) as file:
        processor = towers.image_processor(json.loads(file.read_text(encoding="utf-8")))
    with _reading(folder / "tokenizer.json"):
        loader = (
            transformers.PreTrainedTokenizerFast if kind == "tiny" else transformers.AutoTokenizer
        )
        tokenizer = loader.from_pretrained(folder)
    model = cls(backbone, processor, tokenizer)
    with _reading(folder / WEIGHTS):
        state, wanted = load_file(folder / WEIGHTS), _weights(model)
        shapes, there = (
            {name: part.shape for name, part in weights.items()} for weights in (wanted, state)
        )
        if odd := sorted(n for n in shapes.keys() | there.keys() if shapes.get(n) != there.get(n)):
            raise ValueError(
                f"it does not fit {CONFIG}: {len(odd)} weights differ, first {odd[0]!r}"
            )
    model.load_state_dict(state, strict=False)  # frozen towers have their own files
    return model.eval()


def _build_backbone(kind: str, settings: dict, folder: Path) -> torch.nn.Module:
    def read(part: Path) -> torch.nn.Module:
        with _reading(part):
            return transformers.AutoModel.from_pretrained(part, dtype=torch.float32).eval()

    if kind == "frozen":
        return towers.FrozenBackbone(
            read(folder / "image_tower"), read(folder / "text_tower"), **settings
        )
    if kind == "clip":
        return towers.HubBackbone(read(folder))
    with _reading(folder / CONFIG):
        return {"tiny": towers.TinyBackbone}[kind](**settings)


@contextmanager
def _reading(path: Path) -> Iterator[Path]:
    """Turns any error while reading into a ValueError that names the file; readers raise nearly
    anything.
    """
    try:
        with towers.quiet_transformers():
            yield path
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{str(path)!r} is missing or damaged ({reason}): save the model again"
        ) from error
