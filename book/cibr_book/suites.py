"""The study's suites of benchmarks, and published scores as a check of the evaluation code.

Importing this module adds the suites to `cibr.evaluate.SUITES`.
"""

import argparse
from collections.abc import Sequence

import pandas as pd
import torch

from cibr.evaluate import SUITES, Task, evaluate
from cibr.models import DualEncoder
from cibr.utils import project_root

GLYPHS = "glyph_digits glyph_letters glyph_scripts glyph_categories glyph_shapes glyph_arrows glyph_diacritics"
PUBLISHED = "data/results/published.csv"
PUBLISHED_SUITES = ("paper", "paper-extras")


def _tasks(names: str, kind: str = "zero-shot", split: str = "test", group: str = ""):
    return tuple(Task(name, kind, split, group) for name in names.split())


# `mini` has subsets in folders of $CIBR_DATA; `glyphs` is rendered. Models are selected on
# `paper-validation` and `glyphs-validation`.
SUITES |= {
    "paper-extras": _tasks("imagenet1k vtab-flowers"),
    "paper-validation": _tasks("vtab-flowers cars sun397 imagenetv2"),
    "mini": _tasks("cifar10 caltech101-mini food101-64px imagenette intel-scenes dtd10")
    + _tasks("pacs-photo pacs-art_painting pacs-cartoon pacs-sketch", group="pacs")
    + _tasks("flickr8k", "retrieval"),
    "glyphs": (
        *_tasks(GLYPHS),
        Task("glyphs", "retrieval"),
        Task("glyphs", "retrieval", "test_characters"),
    ),
    "glyphs-validation": (
        *_tasks(GLYPHS, split="validation"),
        Task("glyphs", "retrieval", "validation"),
        Task("glyphs", "retrieval", "validation_characters"),
    ),
}


def published(model: str) -> pd.DataFrame:
    """The published scores of a model, as a reference for the evaluation code.

    Args:
        model: its hub id.

    Returns:
        `dataset, metric, value, source`; values in per cent, as published.

    Raises:
        ValueError: the table has no results of the model.
    """
    table = pd.read_csv(project_root() / PUBLISHED)
    known = table[table["model"] == model]
    if known.empty:
        models = ", ".join(table["model"].unique())
        raise ValueError(f"published.csv has no results of {model!r}; it has those of {models}")
    return known.drop(columns="model").reset_index(drop=True)


def against_published(rows: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Published and measured scores side by side.

    Args:
        rows: of evaluations, see `Evaluation.rows`.
        known: from `published`.

    Returns:
        `dataset, metric, published, measured, low, high, difference` in per cent, one row per
        published score.
    """
    known = known.rename(columns={"value": "published"})[["dataset", "metric", "published"]]
    both = known.merge(
        rows.rename(columns={"value": "measured"}), on=["dataset", "metric"], how="left"
    )
    both[["measured", "low", "high"]] *= 100
    both["difference"] = both["measured"] - both["published"]
    return both[["dataset", "metric", "published", "measured", "low", "high", "difference"]]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the published scores of a model beside those that `cibr.evaluate` measures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", help="a hub id with published scores")
    name = parser.parse_args(argv).model
    known, model = published(name), DualEncoder.from_pretrained(name)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = pd.concat([evaluate(model, suite, name=name).rows for suite in PUBLISHED_SUITES])
    table = against_published(rows, known)
    print(table.to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    main()
