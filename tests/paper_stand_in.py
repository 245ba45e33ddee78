"""A stand-in for the paper's setting: data, a model and two sweeps that run in a minute."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from cibr.data import Pairs, load_pairs
from cibr.evaluate import SUITES
from cibr.models.io import quiet_transformers
from cibr.models.towers import train_tokenizer
from cibr.utils import project_root

CONDITION = "MSCOCO, ViT-B/32"
SETS = [task.dataset for task in SUITES["paper"] if task.kind == "zero-shot"]


def make_stand_in(
    folder: Path, methods: Sequence[str], learning_rates: Sequence[float]
) -> list[Path]:
    """Writes a stand-in for the paper's setting: data, a model and two sweeps that run in a minute.

    Glyphs replace every data set of the paper and a random model of two layers replaces OpenAI's,
    under their names in `data` and `models`; the committed sweeps are cut to a few methods, two
    seeds and smaller batches.

    Returns:
        The paths of the two sweeps, trials first.
    """
    train = load_pairs("glyphs", "train").subset(range(480))
    test = load_pairs("glyphs", "test").subset(range(96))
    for name in ("mscoco_captions", "flickr30k"):
        for pairs in (train, test):
            _write_shard(folder / "data" / f"wds_{name}", pairs)
    sources = [task.dataset for task in SUITES["glyphs"] if task.kind == "zero-shot"]
    validation = [task.title for task in SUITES["paper-validation"]]
    for i, name in enumerate([*SETS, *validation]):
        source = load_pairs(sources[i % 7], "test")
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(i))
        _write_shard(folder / "data" / f"wds_{name}", source.subset(order[:60]))
    _write_model(folder / "models" / "openai" / "clip-vit-base-patch32", train.texts())
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    sweeps = ("clip-coco-trials", "clip-coco")
    return [_write_sweep(folder, name, methods, learning_rates) for name in sweeps]


def _write_sweep(
    folder: Path, name: str, methods: Sequence[str], learning_rates: Sequence[float]
) -> Path:
    file = Path("experiments", f"{name}.yaml")
    entries = yaml.safe_load((project_root() / file).read_text(encoding="utf-8"))
    condition = entries["conditions"][CONDITION]
    condition["methods"] = [m for m in condition["methods"] if m["method"] in methods]
    for method in condition["methods"]:
        method |= {key: value[:1] for key, value in method.items() if isinstance(value, list)}
        if "learning_rate" in method:
            method["learning_rate"] = list(learning_rates)
    if name.endswith("trials"):
        entries["fixed"] |= {"batch_size": 48, "micro_batch_size": 16}
    else:
        entries["fixed"]["seed"] = [1, 2]
    entries |= {"conditions": {CONDITION: condition}, "results": f"{name}.csv"}
    (folder / file).write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    return folder / file


def _write_model(folder: Path, texts: list[str]) -> None:
    tokenizer = train_tokenizer(texts, context=32)
    sizes = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    ends = dict(bos_token_id=1, eos_token_id=1, pad_token_id=0)
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=32, **ends, **sizes)
    vision = dict(image_size=32, patch_size=8, **sizes)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
    torch.manual_seed(0)
    with quiet_transformers():
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)


def _write_shard(folder: Path, pairs: Pairs) -> None:
    """Writes a split as one WebDataset shard: images with their captions, or with their class."""
    split = folder / pairs.split
    split.mkdir(parents=True, exist_ok=True)
    is_retrieval = pairs.classnames is None
    with tarfile.open(split / "0.tar", "w") as tar:
        for i, image in enumerate(pairs.images()):
            stream = io.BytesIO()
            image.save(stream, "PNG")
            answer = "\n".join(pairs.captions[i]) if is_retrieval else str(int(pairs.labels[i]))
            suffix = "txt" if is_retrieval else "cls"
            for name, content in (("png", stream.getvalue()), (suffix, answer.encode())):
                member = tarfile.TarInfo(f"s{i:07d}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    files = {f"{pairs.split}/nshards.txt": "1\n", "dataset_type.txt": "retrieval"}
    if not is_retrieval:
        files["dataset_type.txt"] = "classification"
        files["classnames.txt"] = "\n".join(pairs.classnames)
        files["zeroshot_classification_templates.txt"] = "\n".join(pairs.templates or [])
    for name, text in files.items():
        (folder / name).write_text(text)
