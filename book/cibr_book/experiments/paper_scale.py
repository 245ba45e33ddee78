"""The paper's setting: the tables of its results, in the form of Ji et al. (2025).

Zero-shot accuracy on seven data sets, and recall at 1, 5 and 10 on MSCOCO and Flickr30K.
"""

from collections.abc import Mapping, Sequence

import pandas as pd
import yaml

from cibr.evaluate import SUITES
from cibr.utils import project_root
from cibr_book.experiments.tables import differences
from cibr_book.intervals import student_interval

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
        if own.empty:
            continue
        methods = [method["method"] for method in part["methods"]]
        accuracies[condition] = score_table(own, methods, ZERO_SHOT)
        recalls[condition] = score_table(own, methods, RETRIEVAL)
        candidates = [name for name in methods if name.startswith("CIBR")]
        successes[condition] = criterion(own, candidates)
    return {
        "Zero-shot accuracy in per cent": pd.concat(accuracies),
        "Recall in per cent": pd.concat(recalls),
        "Scores in which a method is significantly better than a control": pd.concat(successes),
    }


def score_table(
    rows: pd.DataFrame, methods: Sequence[str], columns: Mapping[str, str]
) -> pd.DataFrame:
    """Scores as text, `34.9 ± 0.2`, with half of Student's 95 % interval over seeds.

    Args:
        rows: of one condition, from `read_table`; may be empty.
        methods: names, in order.
        columns: `ZERO_SHOT` or `RETRIEVAL`.

    Returns:
        One row per method and one column per heading; a cell without results says so.
    """
    table = pd.DataFrame(_NOT_RUN, [*methods], [*columns])
    for method, own in rows.groupby("method"):
        for title, column in columns.items():
            if column in own and own[column].notna().all():
                mean, low, _ = student_interval(100 * own[column])
                table.loc[method, title] = f"{mean:.1f} ± {mean - low:.1f}".removesuffix(" ± nan")
    return table.reindex(methods)


def criterion(rows: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """In how many of the five `SCORES` a method is significantly above each control.

    Args:
        rows: of one condition, from `read_table`; may be empty.
        methods: names, in order.
    """
    table = pd.DataFrame(_NOT_RUN, [*methods], [*CONTROLS])
    for control in (name for name in CONTROLS if name in set(rows["method"])):
        against = differences(rows[rows["method"] != "untouched"], SCORES, control)
        gains = (against["low"] > 0).groupby(against["method"]).sum()
        table[control] = gains.map("{} of 5".format).reindex(table.index, fill_value=_NOT_RUN)
        table.loc[table.index == control, control] = ""
    return table
