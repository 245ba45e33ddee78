"""The paper's setting: its result tables, the cost of a step, and a small stand-in to run it on.

Tables have the form of Ji et al. (2025): zero-shot accuracy on seven data sets, recall at 1, 5 and
10 on MSCOCO and Flickr30K.
"""

import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
import yaml
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from cibr.data import Pairs, load_pairs
from cibr.evaluate import SUITES
from cibr.models.io import quiet_transformers
from cibr.models.towers import train_tokenizer
from cibr.utils import project_root
from cibr_book.tables import differences, score_table

_TITLES = ("CIFAR-10", "CIFAR-100", "Food-101", "Caltech-101", "Pets", "DTD", "EuroSAT")
_SETS = [task.dataset for task in SUITES["paper"] if task.kind == "zero-shot"]
ZERO_SHOT = {title: f"paper/{name}/accuracy@1" for title, name in zip(_TITLES, _SETS, strict=True)}
ZERO_SHOT["mean"] = "paper/mean of 7/accuracy@1"
RETRIEVAL = {
    f"{title}, {way.replace('_', ' ')}, @{k}": f"paper/{name}/{way}_recall@{k}"
    for title, name in (("MSCOCO", "mscoco_captions"), ("Flickr30K", "flickr30k"))
    for way in ("image_to_text", "text_to_image")
    for k in (1, 5, 10)
}
SCORES = [ZERO_SHOT["mean"], *(RETRIEVAL[title] for title in RETRIEVAL if title.endswith("@1"))]
CONTROLS = ("CLIP", "noise only", "CLIP, weight averaging", "CIBR vMF")  # vMF is CLIP + cosine
CONDITION = "MSCOCO, ViT-B/32"
_NOT_RUN = "not run"


def paper_table(
    rows: pd.DataFrame, methods: Sequence[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """A table of the paper, with "not run" in cells without results.

    Args:
        rows: of one condition, from `read_table`; may be empty.
        methods: names, in order.
        columns: `ZERO_SHOT` or `RETRIEVAL`.
    """
    known = rows.reindex(columns=["method", *columns.values()])
    table = score_table(known, columns).reindex(index=methods, columns=[*columns])
    return table.astype(object).fillna("nan").replace("nan", _NOT_RUN)


def criterion(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """In how many of the five `SCORES` a method is significantly above each control.

    Args:
        rows: of one condition, from `read_table`; may be empty.
        methods: names, in order.
    """
    table = pd.DataFrame(_NOT_RUN, [*methods], [*CONTROLS])
    for control in (name for name in CONTROLS if name in set(rows["method"])):
        against = differences(rows[rows["method"] != "untouched"], SCORES, control)
        gains = (against["significance"] == "gain").groupby(against["method"]).sum()
        table[control] = gains.map("{} of 5".format).reindex(table.index, fill_value=_NOT_RUN)
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
    weights = {p.untyped_storage()._cdata: p.numel() for p in model.parameters()}
    flop = 0
    largest = 0
    for tower, inputs in (
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
            tower(*inputs)
        flop += counter.get_total_flops()
        largest = max(largest, sum(size for key, size in saved.items() if key not in weights))
    # Two forward passes, and a backward pass worth two; four numbers of four bytes per weight.
    n_bytes = 16 * sum(weights.values()) + largest / 2
    return {"GFLOP a pair": 4 * flop / rows / 1e9, "GiB": n_bytes / 2**30}


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
    for i, name in enumerate([*_SETS, *validation]):
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
