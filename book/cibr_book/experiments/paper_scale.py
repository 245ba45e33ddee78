"""The paper's setting: its result tables, and the cost of a step.

Tables have the form of Ji et al. (2025): zero-shot accuracy on seven data sets, recall at 1, 5 and
10 on MSCOCO and Flickr30K.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
import yaml
from transformers import CLIPConfig, CLIPModel

from cibr.evaluate import SUITES
from cibr.utils import project_root
from cibr_book.experiments.tables import differences, score_table

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
CONTROLS = ("CLIP", "noise only", "CLIP, weight averaging", "CyCLIP", "CLIP-Refine")
CONTROLS += ("CIBR vMF",)  # CLIP + cosine
_NOT_RUN = "not run"


def result_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of the page, the conditions that have rows one below another.

    Args:
        rows: of experiments/clip-coco.yaml, from `read_table`.

    Returns:
        Accuracies, recalls, and the `criterion` of the methods that are CIBR's, by title.
    """
    plan = yaml.safe_load((project_root() / "experiments" / "clip-coco.yaml").read_text("utf-8"))
    accuracies, recalls, successes = {}, {}, {}
    for condition, part in plan["conditions"].items():
        own = rows[rows["condition"] == condition]
        if len(own):
            methods = [method["method"] for method in part["methods"]]
            accuracies[condition] = paper_table(own, methods, ZERO_SHOT)
            recalls[condition] = paper_table(own, methods, RETRIEVAL)
            candidates = [name for name in methods if name.startswith("CIBR")]
            successes[condition] = criterion(own, candidates)
    return {
        "Zero-shot accuracy in per cent": pd.concat(accuracies),
        "Recall in per cent": pd.concat(recalls),
        "Scores in which a method is significantly better than a control": pd.concat(successes),
    }


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
