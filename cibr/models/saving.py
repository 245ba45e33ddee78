"""A `DualEncoder` as a folder: what `save_pretrained` writes and `from_pretrained` reads, bit for bit.

    cibr.json                  the backbone's kind and settings
    cibr.safetensors           every weight that training can move
    preprocessor_config.json   image preprocessing, in the hub's format
    tokenizer.json, ...        the tokenizer, in the hub's format
    image_tower/, text_tower/  the frozen towers (kind `frozen`)
    config.json, model.safetensors  the CLIP itself (kind `clip`), so that `CLIPModel.from_pretrained` reads it

The folder is written beside its place and moved there, so a killed save leaves the old one whole.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, CLIPImageProcessor, CLIPModel
from transformers import AutoImageProcessor

from cibr.models import pretrained, tiny

CONFIG, WEIGHTS = "cibr.json", "cibr.safetensors"
FORMAT = 1


def save(model, folder: Path) -> Path:
    """Writes a model's folder; other files that lie in the folder stay.

    Raises:
        ValueError: a folder that cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as part:
            _write(model, Path(part))
            _move_into(Path(part), folder)
    except OSError as error:
        raise ValueError(f"cannot write the model to {str(folder)!r}: {error}; choose another output_dir") from error
    return folder


def _write(model, folder: Path) -> None:
    model.processor.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    backbone = model.backbone
    if backbone.kind == "frozen":
        backbone.image_tower.save_pretrained(folder / "image_tower")
        backbone.text_tower.save_pretrained(folder / "text_tower")
    if backbone.kind == "clip":
        backbone.clip.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in model.own_state().items()}, folder / WEIGHTS)
    config = {
        "format": FORMAT,
        "kind": backbone.kind,
        "settings": backbone.settings,
        "learn_variance": model.learn_variance,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def _move_into(part: Path, folder: Path) -> None:
    """Moves every file to its place, the configuration last: a folder without it is not read as complete."""
    (folder / CONFIG).unlink(missing_ok=True)
    for item in sorted(part.iterdir(), key=lambda item: item.name == CONFIG):
        target = folder / item.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(item, target)


def load(cls, folder: Path):
    """Reads a folder that `save` wrote.

    Raises:
        ValueError: a missing or damaged file, named.
    """
    config = _read_config(folder)
    backbone = _build_backbone(config, folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = cls(backbone, processor, tokenizer, config["learn_variance"])
    file = folder / WEIGHTS
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{str(file)!r} is missing or damaged ({error}): save the model again") from error
    wanted = model.own_state()
    if state.keys() != wanted.keys():
        odd = sorted(state.keys() ^ wanted.keys())
        raise ValueError(f"{str(file)!r} does not fit {CONFIG}: {len(odd)} weights differ, first {odd[0]!r}")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(state[name])
    return model.eval()


def _read_config(folder: Path) -> dict:
    file = folder / CONFIG
    try:
        config = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}): save the model again") from error
    if config.get("format") != FORMAT:
        raise ValueError(f"{str(file)!r} has format {config.get('format')!r} and this version reads {FORMAT}")
    return config


def _build_backbone(config: dict, folder: Path) -> torch.nn.Module:
    if config["kind"] == "tiny":
        return tiny.TinyBackbone(**config["settings"])
    if config["kind"] == "frozen":
        towers = (AutoModel.from_pretrained(folder / t, dtype=torch.float32).eval() for t in ("image_tower", "text_tower"))
        return pretrained.FrozenBackbone(*towers, **config["settings"])
    return pretrained.ClipBackbone(CLIPModel.from_pretrained(folder, dtype=torch.float32))
