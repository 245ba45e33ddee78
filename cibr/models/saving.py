"""A `DualEncoder` as a folder: what `save_pretrained` writes and `from_pretrained` reads, bit for bit.

    cibr.json                  the backbone's kind and settings
    cibr.safetensors           every weight that training can move, a CLIP's own aside
    preprocessor_config.json   image preprocessing, in the hub's format
    tokenizer.json, ...        the tokenizer, in the hub's format
    image_tower/, text_tower/  the frozen towers (kind `frozen`)
    config.json, model.safetensors  the CLIP itself (kind `clip`), so that `CLIPModel.from_pretrained` reads it

Other files, such as a run's history, may lie in the same folder, so it cannot be replaced whole. A save writes
everything to a folder inside it and renames that to `.complete`, in one step: before it the old model is what
loads, after it the new one, from `.complete` until every file has its place. So a kill at any moment, or a full
disk, leaves one model or the other whole.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, CLIPModel

from cibr.models import pretrained, tiny

CONFIG, WEIGHTS = "cibr.json", "cibr.safetensors"
COMPLETE, SAVING = ".complete", ".saving-"
FORMAT = 1


def save(model, folder: Path) -> Path:
    """Writes a model's folder; other files that lie in the folder stay.

    Raises:
        ValueError: a folder that cannot be written; the model that was there still loads.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _finish(folder)
        for left in folder.glob(f"{SAVING}*"):  # by saves that were killed
            shutil.rmtree(left)
        part = Path(tempfile.mkdtemp(dir=folder, prefix=SAVING))
        try:
            with pretrained.quiet_transformers():
                _write(model, part)
            _sync(part)
            part.chmod(0o777 & ~_umask())
            part.rename(folder / COMPLETE)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        _finish(folder)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"cannot write the model to {str(folder)!r}: {error}; make room or choose another output_dir"
        ) from error
    return folder


def _write(model, folder: Path) -> None:
    model.processor.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    backbone = model.backbone
    if backbone.kind == "frozen":
        backbone.image_tower.save_pretrained(folder / "image_tower")
        backbone.text_tower.save_pretrained(folder / "text_tower")
    if backbone.kind == "clip":
        backbone.clip.logit_scale.data.copy_(model.log_logit_scale.data)  # for those who load it as a CLIPModel
        backbone.clip.save_pretrained(folder)
    save_file({k: v.contiguous() for k, v in _weights(model).items()}, folder / WEIGHTS)
    config = {
        "format": FORMAT,
        "kind": backbone.kind,
        "settings": backbone.settings,
        "learn_variance": model.learn_variance,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.own_state().items() if not name.startswith("backbone.clip.")}


def _finish(folder: Path) -> None:
    """Puts the files of a complete save in their places; a second call goes on where a killed one stopped."""
    complete = folder / COMPLETE
    if not complete.is_dir():
        return
    for file in sorted(file for file in complete.rglob("*") if file.is_file()):
        target = folder / file.relative_to(complete)
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(target.name + ".part")
        beside.unlink(missing_ok=True)
        try:
            os.link(file, beside)
        except OSError:  # a file system without links
            shutil.copy2(file, beside)
        beside.replace(target)
    left = folder / f"{SAVING}placed"  # renamed first: a half-removed folder must not count as complete
    complete.rename(left)
    shutil.rmtree(left)


def _sync(folder: Path) -> None:
    """Makes the files durable before the rename that makes them count."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def holds_model(folder: Path) -> bool:
    """Whether `save` wrote this folder, wholly or in part."""
    return any((folder / name).exists() for name in (COMPLETE, CONFIG, WEIGHTS))


def load(cls, folder: Path):
    """Reads a folder that `save` wrote.

    Raises:
        ValueError: a missing or damaged file, named.
    """
    if (folder / COMPLETE).is_dir():
        folder = folder / COMPLETE
    config = _read_config(folder / CONFIG)
    backbone = _build_backbone(config, folder)
    processor = _read(AutoImageProcessor, folder)
    tokenizer = _read(AutoTokenizer, folder)
    model = cls(backbone, processor, tokenizer, config["learn_variance"])
    _read_weights(model, folder / WEIGHTS)
    return model.eval()


def _read_weights(model, file: Path) -> None:
    try:
        state = load_file(file)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{str(file)!r} is missing or damaged ({error}): save the model again") from error
    wanted = _weights(model)
    shapes, there = ({k: tuple(v.shape) for k, v in weights.items()} for weights in (wanted, state))
    odd = sorted(name for name in shapes.keys() | there.keys() if shapes.get(name) != there.get(name))
    if odd:
        raise ValueError(
            f"{str(file)!r} does not fit {CONFIG}: {len(odd)} weights differ, first {odd[0]!r}; "
            "save the model again"
        )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(state[name])


def _read_config(file: Path) -> dict:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{str(file)!r} is missing: the folder is half-written; save the model again") from error
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is damaged ({error}): save the model again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        there = config.get("format") if isinstance(config, dict) else config
        raise ValueError(f"{str(file)!r} has format {there!r} and this version reads {FORMAT}")
    missing = {"kind", "settings", "learn_variance"} - config.keys()
    if missing or config["kind"] not in ("tiny", "frozen", "clip"):
        raise ValueError(f"{str(file)!r} is damaged (kind, settings or learn_variance): save the model again")
    return config


def _build_backbone(config: dict, folder: Path) -> torch.nn.Module:
    if config["kind"] == "tiny":
        return tiny.TinyBackbone(**config["settings"])
    if config["kind"] == "frozen":
        towers = (_read(AutoModel, folder / name, dtype=torch.float32) for name in ("image_tower", "text_tower"))
        return pretrained.FrozenBackbone(*(tower.eval() for tower in towers), **config["settings"])
    return pretrained.ClipBackbone(_read(CLIPModel, folder, dtype=torch.float32))


def _read(loader, folder: Path, **options):
    """`loader.from_pretrained` of a part of the folder; what it raises on a damaged file is nearly anything."""
    try:
        with pretrained.quiet_transformers():
            return loader.from_pretrained(folder, **options)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"{loader.__name__} cannot read {str(folder)!r} ({reason}): "
            "a file is missing or damaged; save the model again"
        ) from error
