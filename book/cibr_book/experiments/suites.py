"""The study's suites of benchmarks, and published scores as a check of the evaluation code.

Importing this module adds the suites to `cibr.evaluate.SUITES`.
"""

import argparse

import pandas as pd
import torch

from cibr.evaluate import SUITES, Task, evaluate
from cibr.models import DualEncoder
from cibr.utils import check_known, project_root

PUBLISHED = project_root() / "data" / "results" / "published.csv"
_PUBLISHED_SUITES = ("paper", "paper-extras")


def _tasks(names: str, split: str = "test", group: str = "") -> list[Task]:
    return [Task(name, "zero-shot", split, group) for name in names.split()]


_MINI = _tasks("cifar10 caltech101-mini food101-64px imagenette intel-scenes dtd10")
_MINI += _tasks("pacs-photo pacs-art_painting pacs-cartoon pacs-sketch", group="pacs")
# `mini` and `confirmation` have subsets in folders of $CIBR_DATA; the glyphs' suites are rendered.
# Models are selected on `paper-validation` and `glyphs-validation`; nothing on `confirmation`.
SUITES |= {
    "paper-extras": tuple(_tasks("imagenet1k vtab-flowers")),
    "paper-validation": tuple(_tasks("vtab-flowers cars sun397 imagenetv2")),
    "mini": (*_MINI, Task("flickr8k", "retrieval")),
    "confirmation": (
        *_tasks("clothing10 flowers5 rsscn7 glyph_digits"),
        Task("coco-mini", "retrieval"),
    ),
}
for _suite, _split in (("glyphs", "test"), ("glyphs-validation", "validation")):
    SUITES[_suite] = (
        *_tasks("glyph_digits glyph_letters glyph_scripts glyph_categories", _split),
        *_tasks("glyph_shapes glyph_arrows glyph_diacritics", _split),
        Task("glyphs", "retrieval", _split),
        Task("glyphs", "retrieval", f"{_split}_characters"),
    )


def _against_published(rows: pd.DataFrame, model: str) -> pd.DataFrame:
    """Published and measured scores side by side.

    Args:
        rows: of evaluations, see `Evaluation.rows`.
        model: the hub id of a model in published.csv.

    Returns:
        `dataset, metric, published, measured, low, high, difference` in per cent, one row per
        published score.
    """
    by = ["dataset", "metric"]
    table = pd.read_csv(PUBLISHED)
    check_known("model with published scores", model, list(table["model"].unique()))
    known = table[table["model"] == model].rename(columns={"value": "published"})
    both = known.merge(rows.rename(columns={"value": "measured"}), on=by, how="left")
    both[["measured", "low", "high"]] *= 100
    both["difference"] = both["measured"] - both["published"]
    return both[[*by, "published", "measured", "low", "high", "difference"]]


def _main() -> None:
    """Print the published scores of a model beside those that `cibr.evaluate` measures."""
    parser = argparse.ArgumentParser(description=_main.__doc__)
    parser.add_argument("model", help="a hub id with published scores")
    name = parser.parse_args().model
    model = DualEncoder.from_pretrained(name)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = pd.concat([evaluate(model, suite, name=name).rows for suite in _PUBLISHED_SUITES])
    print(_against_published(rows, name).to_string(index=False, float_format="{:.2f}".format))


if __name__ == "__main__":
    _main()
