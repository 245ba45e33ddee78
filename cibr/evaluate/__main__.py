"""`python -m cibr.evaluate MODEL --suite mini [--compare-with MODEL2]` prints scores with 95 % intervals.

A model is a folder that a run left, a folder with a CLIPModel, or a hub id. With
`--published openai/clip-vit-base-patch32` the model is measured on the sets that have published results, which
are fetched from the hub where they are not in $CIBR_DATA, and the differences are printed.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch

from cibr.evaluate import SUITES, compare, evaluate, format_table
from cibr.evaluate.published import PUBLISHED_SUITES, against_published, published
from cibr.evaluate.tables import Evaluation
from cibr.models import DualEncoder


def main() -> None:
    """Evaluates the models that the arguments name and prints the tables."""
    arguments = _parser().parse_args()
    try:
        if arguments.published:
            print(_published(arguments).to_string(index=False, float_format="{:.2f}".format))
        else:
            _compared(arguments)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        _parser().error(str(error))


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="cibr.evaluate", description=__doc__, formatter_class=as_written)
    parser.add_argument("model", help="a folder or a hub id")
    parser.add_argument("--suite", default="mini", choices=SUITES, help="the sets to measure on")
    parser.add_argument("--compare-with", metavar="MODEL", help="a second model; differences are its scores minus")
    parser.add_argument("--published", action="store_true", help="measure on the sets with published results")
    parser.add_argument("--limit", type=int, default=0, help="at most so many pictures a set; 0 for all")
    parser.add_argument("--batch-size", type=int, default=256, help="rows that are encoded at once")
    parser.add_argument("--output", type=Path, help="a folder that keeps what is finished")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where models run"
    )
    return parser


def _evaluated(arguments: argparse.Namespace, name: str, suite: str) -> Evaluation:
    model = DualEncoder.from_pretrained(name).to(arguments.device)
    folder = arguments.output and arguments.output / name.strip("/").replace("/", "-")
    options = {"limit": arguments.limit, "batch_size": arguments.batch_size, "output_dir": folder}
    return evaluate(model, suite, name=name, **options)


def _compared(arguments: argparse.Namespace) -> None:
    names = [arguments.model] + ([arguments.compare_with] if arguments.compare_with else [])
    found = [_evaluated(arguments, name, arguments.suite) for name in names]
    for evaluation in found:
        print(f"\n{evaluation.model}, suite {evaluation.suite}: per cent (ranks from 1), with 95 % intervals")
        _print(evaluation.rows)
    if len(found) == 2:
        print(f"\n{names[1]} minus {names[0]}, paired by picture: percentage points, with 95 % intervals")
        _print(compare(*found), "difference")


def _print(rows: pd.DataFrame, value: str = "value") -> None:
    for _, of_kind in rows.groupby("kind", sort=False):
        table = format_table(of_kind, value)
        print((table.T if len(table) < len(table.columns) else table).to_string(), "\n")  # the narrower way


def _published(arguments: argparse.Namespace) -> pd.DataFrame:
    known = published(arguments.model)
    found = [_evaluated(arguments, arguments.model, suite).rows for suite in PUBLISHED_SUITES]
    return against_published(pd.concat(found), known)


if __name__ == "__main__":
    main()
