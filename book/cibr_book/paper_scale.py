"""The paper's setting: its result tables, the cost of a step, and a small stand-in for the data and
the model.

Tables have the form of Ji et al. (2025): zero-shot accuracy on seven data sets, recall at 1, 5 and
10 on MSCOCO and Flickr30K.
"""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from cibr.data import Pairs, load_pairs
from cibr.evaluate import SUITES
from cibr.models.towers import quiet_transformers, train_tokenizer
from cibr.utils import project_root
from cibr_book.tables import differences, score_table

TITLES = ("CIFAR-10", "CIFAR-100", "Food-101", "Caltech-101", "Pets", "DTD", "EuroSAT")
SETS = [task.dataset for task in SUITES["paper"] if task.kind == "zero-shot"]
ZERO_SHOT = {title: f"paper/{name}/accuracy@1" for title, name in zip(TITLES, SETS, strict=True)}
ZERO_SHOT["mean"] = "paper/mean of 7/accuracy@1"
RETRIEVAL = {
    f"{title}, {way.replace('_', ' ')}, @{k}": f"paper/{name}/{way}_recall@{k}"
    for title, name in (("MSCOCO", "mscoco_captions"), ("Flickr30K", "flickr30k"))
    for way in ("image_to_text", "text_to_image")
    for k in (1, 5, 10)
}
SCORES = [
    ZERO_SHOT["mean"],
    *(column for title, column in RETRIEVAL.items() if title.endswith("@1")),
]
CONTROLS = (
    "CLIP",
    "noise only",
    "CLIP, weight averaging",
    "CIBR vMF",
)  # the last one is CLIP + cosine
CONDITION = "MSCOCO, ViT-B/32"
NOT_RUN = "not run"


def paper_table(
    rows: pd.DataFrame, methods: Sequence[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """A table of the paper, with `NOT_RUN` in cells without results.

    Args:
        rows: of one condition, from `read_table`; may be empty.
        methods: names, in order.
        columns: `ZERO_SHOT` or `RETRIEVAL`.
    """
    known = rows.reindex(columns=["method", *columns.values()])
    found = score_table(known, columns).reindex(index=methods, columns=[*columns])
    return found.astype(object).fillna("nan").replace("nan", NOT_RUN)


def criterion(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The success criterion: in how many of the five `SCORES` a method is significantly above each
    control.

    Args:
        rows: of one condition, from `read_table`; may be empty.
        methods: names, in order.
    """
    table = pd.DataFrame(NOT_RUN, [*methods], [*CONTROLS])
    for control in (name for name in CONTROLS if name in set(rows["method"])):
        against = differences(rows[rows["method"] != "untouched"], SCORES, control)
        gains = (against["significance"] == "gain").groupby(against["method"]).sum()
        table[control] = (
            gains.reindex(table.index).map("{:.0f} of 5".format, na_action="ignore").fillna(NOT_RUN)
        )
        table.loc[table.index == control, control] = ""
    return table


def step_cost(config: CLIPConfig, rows: int) -> dict[str, float]:
    """Compute and memory of a training step, counted on meta tensors.

    Args:
        config: of the model.
        rows: pairs encoded at once, one tower after the other.

    Returns:
        `GFLOP a pair`, with the second forward pass of accumulation; `GiB`, for weights, gradients
        and Adam's two moments in float32, and the larger tower's activations for the backward pass
        in bfloat16.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = CLIPModel._from_config(config, attn_implementation="eager")
        texts = torch.zeros(rows, config.text_config.max_position_embeddings, dtype=torch.long)
        images = torch.zeros(rows, 3, *2 * [config.vision_config.image_size])
    weights = {
        parameter.untyped_storage()._cdata: parameter.numel() for parameter in model.parameters()
    }
    flop, largest = 0, 0
    for tower, given in (
        (model.vision_model, (images,)),
        (model.text_model, (texts, torch.ones_like(texts))),
    ):
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved=saved) -> torch.Tensor:
            storage = tensor.untyped_storage()
            saved[storage._cdata] = storage.nbytes()
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with FlopCounterMode(display=False) as counter, hooks:
            tower(*given)
        flop += counter.get_total_flops()
        largest = max(largest, sum(size for key, size in saved.items() if key not in weights))
    # Two forward passes, and a backward pass worth two; four numbers of four bytes per weight.
    return {
        "GFLOP a pair": 4 * flop / rows / 1e9,
        "GiB": (16 * sum(weights.values()) + largest / 2) / 2**30,
    }


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
    pairs = {
        split: load_pairs("glyphs", split).subset(range(n))
        for split, n in (("train", 480), ("test", 96))
    }
    for name in ("mscoco_captions", "flickr30k"):
        for split, part in pairs.items():
            _write_shard(folder / "data" / f"wds_{name}", split, part)
    sources = [task.dataset for task in SUITES["glyphs"] if task.kind == "zero-shot"]
    validation = [task.title for task in SUITES["paper-validation"]]
    for i, name in enumerate([*SETS, *validation]):
        source = load_pairs(sources[i % 7], "test")
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(i))
        _write_shard(folder / "data" / f"wds_{name}", "test", source.subset(order[:60]))
    _write_model(folder / "models" / "openai" / "clip-vit-base-patch32", pairs["train"].texts())
    (folder / "experiments").mkdir(parents=True, exist_ok=True)
    return [
        _write_sweep(folder, name, methods, learning_rates)
        for name in ("clip-coco-trials", "clip-coco")
    ]


def _write_sweep(
    folder: Path, name: str, methods: Sequence[str], learning_rates: Sequence[float]
) -> Path:
    entries = yaml.safe_load(
        (project_root() / "experiments" / f"{name}.yaml").read_text(encoding="utf-8")
    )
    own = [m for m in entries["conditions"][CONDITION]["methods"] if m["method"] in methods]
    for method in own:
        method.update({k: v[:1] for k, v in method.items() if isinstance(v, list)})
        method.update({"learning_rate": [*learning_rates]} if "learning_rate" in method else {})
    entries["conditions"] = {CONDITION: entries["conditions"][CONDITION] | {"methods": own}}
    smaller = (
        {"batch_size": 48, "micro_batch_size": 16} if name.endswith("trials") else {"seed": [1, 2]}
    )
    entries["fixed"] |= smaller
    file = folder / "experiments" / f"{name}.yaml"
    file.write_text(
        yaml.safe_dump(entries | {"results": f"{name}.csv"}, sort_keys=False), encoding="utf-8"
    )
    return file


def _write_model(folder: Path, texts: list[str]) -> None:
    tokenizer = train_tokenizer(texts, context=32)
    sizes: dict[str, Any] = dict(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    ends = dict(bos_token_id=1, eos_token_id=1, pad_token_id=0)
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=32, **ends, **sizes)
    vision = dict(image_size=32, patch_size=8, **sizes)
    torch.manual_seed(0)
    with quiet_transformers():
        CLIPModel(
            CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)
        ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    crop = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop).save_pretrained(folder)


def _write_shard(folder: Path, split: str, pairs: Pairs) -> None:
    """Writes a split as one WebDataset shard: images with their captions, or with their class."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / split / "0.tar", "w") as tar:
        for i, image in enumerate(pairs.images()):
            stream = io.BytesIO()
            image.save(stream, "PNG")
            is_class = pairs.classnames is not None
            answer = str(int(pairs.labels[i])) if is_class else "\n".join(pairs.captions[i])
            for suffix, content in (
                ("png", stream.getvalue()),
                ("cls" if is_class else "txt", answer.encode()),
            ):
                member = tarfile.TarInfo(f"s{i:07d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    (folder / split / "nshards.txt").write_text("1\n")
    (folder / "dataset_type.txt").write_text(
        "retrieval" if pairs.classnames is None else "classification"
    )
    if pairs.classnames is not None:
        (folder / "classnames.txt").write_text("\n".join(pairs.classnames))
        (folder / "zeroshot_classification_templates.txt").write_text(
            "\n".join(pairs.templates or [])
        )
