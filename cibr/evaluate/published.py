"""Published results of known models, to check the whole engine against: `data/results/published.csv`."""

import pandas as pd

from cibr.paths import project_root

PUBLISHED_SUITES = ("paper", "paper-extras")


def published(model: str) -> pd.DataFrame:
    """The published scores of a model.

    Args:
        model: its hub id.

    Returns:
        `dataset, metric, value, source`; values in per cent, as the source has them.

    Raises:
        FileNotFoundError: the table is missing, as outside a checkout.
        ValueError: a model without published results in the table.
    """
    file = project_root() / "data" / "results" / "published.csv"
    if not file.is_file():
        raise FileNotFoundError(f"there is no {str(file)!r}: run in a checkout of the repository")
    table = pd.read_csv(file)
    known = table[table["model"] == model]
    if known.empty:
        models = ", ".join(table["model"].unique())
        raise ValueError(f"{file.name} has no results of {model!r}; it has those of {models}")
    return known.drop(columns="model").reset_index(drop=True)


def against_published(rows: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Published scores beside measured ones.

    Args:
        rows: of evaluations, see `Evaluation.rows`.
        known: as `published` has them.

    Returns:
        `dataset, metric, published, measured, low, high, difference` in per cent, for the published scores.
    """
    both = known.merge(rows, on=["dataset", "metric"], how="left", suffixes=("_published", "_measured"))
    measured = both[["value_measured", "low", "high"]].mul(100)
    return pd.DataFrame(
        {
            "dataset": both["dataset"],
            "metric": both["metric"],
            "published": both["value_published"],
            "measured": measured["value_measured"],
            "low": measured["low"],
            "high": measured["high"],
            "difference": measured["value_measured"] - both["value_published"],
        }
    )
