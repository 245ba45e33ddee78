"""A stand-in for the paper's setting: data, a model and two sweeps that run in a minute."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from small_suite import write_captions, write_classes
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from cibr.data import Pairs, load_pairs
from cibr.evaluate import SUITES
from cibr.models.preprocessing import train_tokenizer
from cibr.utils import project_root

CONDITION = "MSCOCO, ViT-B/32"
SETS = [task.dataset for task in SUITES["paper"]][:7]


def make_stand_in(
    folder: Path, methods: Sequence[str], learning_rates: Sequence[float]
) -> list[Path]:
    """Writes a stand-in for the paper's setting: data, a model and two sweeps that run in a minute.

    Glyphs and digits replace the data sets of the paper and a random model of two layers replaces
    OpenAI's, under their names in `data` and `models`; the committed sweeps are cut to a few
    methods, two seeds and smaller batches.

    Returns:
        The paths of the two sweeps, trials first.
    """
    glyphs = load_pairs("glyphs", "test")
    train = replace(glyphs.subset(range(192)), split="train")
    test = glyphs.subset(range(192, 448))
    for name in ("mscoco_captions", "flickr30k"):
        for pairs in (train, test):
            _write_split(folder / "data" / f"wds_{name}", pairs)
    source = load_pairs("glyph_digits", "test")
    validation = [task.title for task in SUITES["paper-validation"]]
    for i, name in enumerate([*SETS, *validation]):
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(i))
        _write_split(folder / "data" / f"wds_{name}", source.subset(order[:30]))
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
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)


def _write_split(folder: Path, pairs: Pairs) -> None:
    """Writes a split as a WebDataset shard: images with their captions, or with their class."""
    if pairs.classnames is None:
        write_captions(folder, pairs.captions, pairs.images(), pairs.split)
    else:
        labels, names = pairs.labels.tolist(), pairs.classnames
        write_classes(folder, labels, pairs.images(), names, pairs.templates, pairs.split)
