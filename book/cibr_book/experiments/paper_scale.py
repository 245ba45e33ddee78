"""The paper's setting: the tables of its results, in the form of Ji et al. (2025).

Zero-shot accuracy on seven data sets, recall at 1, 5 and 10 on MSCOCO and Flickr30K, and what the
penalty is about: the residual information of the trained embeddings.
"""

from collections.abc import Mapping

import pandas as pd

from cibr.evaluate import SUITES
from cibr_book.experiments.ablation import KAPPAS
from cibr_book.intervals import mean_intervals

_CLASSES = [task.dataset for task in SUITES["paper"]][:7]  # two sets of captions follow
ZERO_SHOT = {name: f"paper/{name}/accuracy@1" for name in (*_CLASSES, "mean of 7")}
RETRIEVAL = {
    f"{title}, {way.replace('_', ' ')}, @{k}": f"paper/{name}/{way}_recall@{k}"
    for title, name in (("MSCOCO", "mscoco_captions"), ("Flickr30K", "flickr30k"))
    for way in ("image_to_text", "text_to_image")
    for k in (1, 5, 10)
}
RESIDUAL = {"bound": f"residual_bound_{KAPPAS[0]}", "difference by MINE": "residual_mine"}
_ROW = ["condition", "method"]


def result_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables of the page: one row per condition and method that has results.

    Args:
        rows: of experiments/clip-coco.yaml, from `read_table`.

    Returns:
        By title: accuracies and recalls as text, `34.9 ± 0.2`, with half of Student's 95 % interval
        over seeds; and residual information.
    """
    return {
        "Zero-shot accuracy in per cent": _score_table(rows, ZERO_SHOT),
        "Recall in per cent": _score_table(rows, RETRIEVAL),
        "Residual information in nats": _score_table(rows, RESIDUAL, 1),
    }


def _score_table(rows: pd.DataFrame, columns: Mapping[str, str], scale: int = 100) -> pd.DataFrame:
    table = {}
    for title, column in columns.items():
        scored = rows.assign(score=scale * rows[column])
        means = mean_intervals(scored, _ROW, "score").set_index(_ROW)
        half = (means["mean"] - means["low"]).map(" ± {:.1f}".format)
        table[title] = means["mean"].map("{:.1f}".format) + half.where(means["n"] > 1, "")
    return pd.DataFrame(table)
