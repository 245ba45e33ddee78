"""What the tables of an ablation say: verdicts counted, a recommendation a setting, the sentences of both.

Sentences and tables are computed, so that a page that shows them stays true when a table grows.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from cibr.metrics import rank_correlation
from cibr.sweep.arms import BASELINE, KEY
from cibr.sweep.choice import validation_scores
from cibr.sweep.comparison import ABOVE, ALONE, BELOW, HEADLINE

OURS = "CIBR"  # how the names of its arms begin
FEWEST_CLUSTERS = 6  # with fewer, a bootstrap over clusters is too sure of itself
ONE_SIDE = 0.025  # of intervals of 95 %: how often chance alone puts one above 0


def interval_text(row: Mapping, scale: float = 100.0, digits: int = 1) -> str:
    """A difference with its interval, by default a share in percentage points.

    Examples:
        >>> interval_text({"difference": 0.0123, "low": -0.004, "high": 0.03})
        '+1.2 [-0.4, +3.0]'
    """
    difference, low, high = (f"{scale * row[name]:+.{digits}f}" for name in ("difference", "low", "high"))
    return f"{difference} (one seed)" if np.isnan(row["low"]) else f"{difference} [{low}, {high}]"


def side_by_side(rows: pd.DataFrame, scale: float = 100.0, digits: int = 1) -> pd.DataFrame:
    """Differences as text, a line an arm and a column a measure; what lies off 0 is marked with `*`.

    Args:
        rows: `setting, arm, beta, variant, measure, difference, low, high, verdict`, of one control.
        scale: that differences are told in.
        digits: after the point.
    """
    keys = [name for name in KEY if name == "arm" or rows[name].nunique() > 1]
    return _pivot(rows, keys, scale, digits)


def count_verdicts(rows: pd.DataFrame) -> dict[str, int | float]:
    """How many intervals lie above and below 0, and how many chance alone would put on each side.

    Args:
        rows: with `verdict`.

    Returns:
        `n` intervals over several seeds, `above`, `below`, and `by_chance`, the expected number above 0 (as many
        below) if nothing differed.
    """
    n = int((rows["verdict"] != ALONE).sum())
    above, below = (int((rows["verdict"] == side).sum()) for side in (ABOVE, BELOW))
    return {"n": n, "above": above, "below": below, "by_chance": ONE_SIDE * n}


def recommend(differences: pd.DataFrame, arms: pd.DataFrame) -> pd.DataFrame:
    """Whether to penalise, setting by setting: only if an arm gains in all three scores of the headline.

    Args:
        differences: from `arm_differences`.
        arms: from `read_arms`.

    Returns:
        A row a setting: `setting`; `advice`, an arm of ours with its beta or plain CLIP; `arm, beta, variant` of
        the arm of ours that is shown for evidence: of those that gain everywhere, or of all, the one with the most
        seeds and then the best on validation; `n_ours` arms and betas of ours; `gaining`, which of them gain in
        all three against every control; `partly`, which of ours gain in some scores alone and lose in none, with
        those scores; `controls_gaining`, which other arms gain in all three; `hurting`, how many of ours lose in
        a score.
    """
    found = []
    for setting, rows in differences[differences["measure"].isin(HEADLINE)].groupby("setting", sort=False):
        of_setting = arms[arms["setting"] == setting]
        ranks = _ranks(of_setting)
        groups = {key: part for key, part in rows.groupby(KEY, sort=False) if key[1] != BASELINE}
        gains = gain_everywhere(rows[rows["arm"] != BASELINE])
        ours = [key for key in groups if key[1].startswith(OURS)]
        ours_gaining = [key for key in gains if key in ours]
        shown = max(
            ours_gaining or ours, key=lambda key: ranks.get(key, (0, 0.0)), default=(setting, "", np.nan, "")
        )
        hurting = sum((groups[key]["verdict"] == BELOW).any() for key in ours)
        advice = _name(shown) if ours_gaining else "plain CLIP (beta = 0)"
        row = dict(zip(KEY, shown, strict=True)) | {"advice": advice, "n_ours": len(ours), "hurting": int(hurting)}
        others = [_name(key) for key in gains if key not in ours]
        partly = {key: _gains_without_loss(groups[key]) for key in ours if key not in ours_gaining}
        row["partly"] = [f"{_name(key)} in {' and '.join(scores)}" for key, scores in partly.items() if scores]
        found.append(row | {"gaining": [_name(k) for k in ours_gaining], "controls_gaining": others})
    columns = ["setting", "advice", "arm", "beta", "variant", "n_ours", "gaining", "partly", "controls_gaining"]
    return pd.DataFrame(found, columns=[*columns, "hurting"])


def gain_everywhere(rows: pd.DataFrame) -> list[tuple]:
    """The `KEY` of each arm whose every interval in these rows lies above 0, in their order."""
    above = (rows["verdict"] == ABOVE).groupby([rows[name] for name in KEY], sort=False, dropna=False).all()
    return list(above[above].index)


def chosen(arms: pd.DataFrame) -> pd.DataFrame:
    """The beta and variant of each arm in each setting that tells most: one row of `KEY` an arm.

    Those with the most seeds, and of these the best on validation: means over few seeds are not compared with
    means over many.
    """
    best = {}
    for key, rank in _ranks(arms).items():
        if key[:2] not in best or rank > best[key[:2]][0]:
            best[key[:2]] = rank, key
    return pd.DataFrame([key for _, key in best.values()], columns=KEY)


def _ranks(arms: pd.DataFrame) -> dict[tuple, tuple[int, float]]:
    """The number of seeds and the mean validation score of each `KEY`, in their order."""
    groups = arms.assign(score=validation_scores(arms)).groupby(KEY, sort=False)
    return {key: (rows["seed"].nunique(), rows["score"].mean()) for key, rows in groups}


def evidence(recommended: pd.DataFrame, differences: pd.DataFrame) -> pd.DataFrame:
    """The recommendation of each setting beside the numbers it rests on: points against tuned CLIP, as text.

    Args:
        recommended: from `recommend`.
        differences: from `arm_differences`.

    Returns:
        A row a setting with an arm of ours: `setting`, `train` (the advice), `shown` (the arm that the numbers are
        of, see `recommend`) and `seeds` in the index, and a column a score of the headline.
    """
    of_headline = differences["measure"].isin(HEADLINE) & (differences["against"] == BASELINE)
    rows = differences[of_headline].merge(recommended[[*KEY, "advice"]], on=KEY)
    rows["shown"] = [_name(key) for key in rows[KEY].itertuples(index=False)]
    rows = rows.rename(columns={"advice": "train", "n_seeds": "seeds"})
    rows["setting"] = pd.Categorical(rows["setting"], recommended["setting"])
    return _pivot(rows.sort_values("setting", kind="stable"), ["setting", "train", "shown", "seeds"])


def relation_text(
    rows: pd.DataFrame, x: str, y: str, words: tuple[str, str, str], clusters: Sequence[str], within: bool = False
) -> str:
    """How two columns go together over rows, in words that the interval of their rank correlation chooses.

    Args:
        rows: one a run or an arm.
        x: a column.
        y: the other column.
        words: said where the interval lies below 0, where it lies above, and where 0 is inside.
        clusters: the columns that name what belongs together, such as the seeds of one arm.
        within: whether what differs between settings is taken off first.
    """
    rows = rows.dropna(subset=[x, y])
    names = rows[list(clusters)].astype(str).agg("|".join, axis=1).to_numpy(dtype=str)
    n, n_clusters = len(rows), len(set(names))
    if n_clusters < FEWEST_CLUSTERS:
        return f"{n_clusters} arms are too few to tell"
    groups = rows["setting"].to_numpy(dtype=str) if within else None
    found = rank_correlation(rows[x].to_numpy(), rows[y].to_numpy(), names, groups)
    less, more, neither = words
    said = less if found["high"] < 0 else more if found["low"] > 0 else neither
    numbers = f"{found['correlation']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"
    of = f"{n} arms" if n == n_clusters else f"{n} runs of {n_clusters} arms"
    return f"{said} (rank correlation {numbers}, {of})"


def _gains_without_loss(rows: pd.DataFrame) -> list[str]:
    """The scores in which one arm gains against every control; none if it loses in any."""
    if (rows["verdict"] == BELOW).any():
        return []
    said = rows.groupby("measure")["verdict"].agg(set)
    return sorted(said[[verdicts == {ABOVE} for verdicts in said]].index, key=_place)


def _place(measure: str) -> int:
    return HEADLINE.index(measure) if measure in HEADLINE else len(HEADLINE)


def _pivot(rows: pd.DataFrame, index: list[str], scale: float = 100.0, digits: int = 1) -> pd.DataFrame:
    text = [interval_text(row, scale, digits) for row in rows.to_dict("records")]
    marks = rows["verdict"].isin([ABOVE, BELOW]).map({True: " *", False: ""})
    shown = rows.assign(cell=pd.Series(text, index=rows.index, dtype=object) + marks)
    options = dict(aggfunc="first", sort=False, observed=True)
    table = shown.pivot_table(index=index, columns="measure", values="cell", **options)
    return table.reindex(columns=sorted(shown["measure"].unique(), key=_place)).fillna("")


def _name(key: tuple) -> str:
    _, arm, beta, variant = key
    more = [f"beta = {beta:g}"] if beta else []
    return " ".join([arm, f"({', '.join([*more, variant] if variant else more)})"]) if more or variant else arm
