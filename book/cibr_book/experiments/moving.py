"""Fine-tuned towers: the claims of experiments/finished/moving.md.

The code of its runs is no longer here: experiments/finished/README.md says how to repeat a row.
"""

import pandas as pd

from cibr_book import intervals
from cibr_book.experiments.ablation import ZERO_SHOT, with_measures
from cibr_book.experiments.confirmation import VALIDATION
from cibr_book.experiments.tables import KEY

_ANCHOR = "anchor at the start"
_ALONE = "anchor, heads alone"


def at_best_settings(rows: pd.DataFrame) -> pd.DataFrame:
    """The runs of moving.yaml with `ablation.MEASURES`, in points: of each method those at
    its settings, of up to three, with the highest mean recall on validation.

    Args:
        rows: of moving.csv, from `read_table`; trials and runs of other plans are left out.
    """
    rows = with_measures(rows[rows["seed"].between(800, 899)])
    best = rows.groupby(KEY)[VALIDATION].mean().groupby(level=KEY[:2]).idxmax()
    return rows[pd.MultiIndex.from_frame(rows[KEY]).isin(best)]


def claim_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/finished/moving.md, about 600 photos.

    Args:
        rows: of moving.csv, from `read_table`, all of them; trials are left out.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    best = at_best_settings(rows[rows["condition"] == "600 photos"])
    of = {method: own.set_index("seed") for method, own in best.groupby("method", sort=False)}
    tested = [name for name in of if name not in ("start", "CLIP", "noise only", _ALONE)]
    claims = [("1", ZERO_SHOT, "start", "CLIP")]
    claims += [("2", x, method, "CLIP") for method in tested for x in ("search", ZERO_SHOT)]
    controls = ("start", "CLIP-averaged", _ALONE)
    claims += [("3", "search", _ANCHOR, control) for control in controls]
    return intervals.outcomes(
        (number, f"{measure}: {better} above {worse}", of[better][measure] - of[worse][measure])
        for number, measure, better, worse in claims
    )
