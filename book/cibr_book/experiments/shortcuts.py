"""Photos and sheets of letters with a shortcut: what the rows of shortcuts.csv say.

A shortcut is a style that goes with a word of the captions, or that captions name. Test photos and
captions follow the same rule (kept), none (removed) or the opposite one (reversed). The runs of
experiments/finished/shortcuts.yaml were made by the commits that their rows name, with their
drawing and their predictions.
"""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd

from cibr.data import Pairs
from cibr.data.glyphs import SERIF, STIX, draw_all, glyph_characters, pixel_image, sample_factors
from cibr.metrics import mean_interval
from cibr_book import intervals

SHIFTS = {"kept": 1.0, "removed": 0.0, "reversed": -1.0}  # times the tie of style and caption
_SHOWN = (
    "greek small letter (?:zeta|eta|iota|kappa|mu|nu|xi|rho|sigma|tau|phi|chi)"
    "|latin capital letter [fgjkqrwz]"
)
_SPLITS = ("train", "validation", "test")


def glyph_sheets(first: float, last: float) -> list[Pairs]:
    """Sheets of four characters: 2,000 for training, 1,000 each for validation and test.

    A caption names the four of twenty Greek and Latin letters on its sheet; they share nothing
    else. The probability that a letter is named, rather than any of the twenty, falls evenly from
    `first` to `last`. If these are equal, all letters are shared equally, with equal correlations
    for an encoder that sees them equally well, and a gap below. Otherwise they form a tail.
    """
    known = glyph_characters().sample(frac=1, random_state=0)
    shown = known[known["name"].str.fullmatch(_SHOWN)]
    factors = sample_factors(shown, SERIF + STIX, 32).assign(ink=0, paper=255)
    pixels = draw_all(factors).reshape(len(shown), -1, 32, 32)
    generator = np.random.default_rng(0)
    characters = generator.random((4000, len(shown))).argsort(1)[:, :4]
    sheets = pixels[characters, generator.integers(pixels.shape[1], size=characters.shape)]
    sheets = sheets.reshape(-1, 2, 2, 32, 32).swapaxes(2, 3).reshape(-1, 64, 64)
    shares = np.linspace(first, last, len(shown))[characters]
    is_named = generator.random(characters.shape) < shares
    others = generator.integers(len(shown), size=characters.shape)
    names = shown["name"].str.split().str[-1].to_numpy()[np.where(is_named, characters, others)]
    captions = [["{}, {}, {} and {}".format(*four)] for four in names]
    keys = [f"sheet {i}" for i in range(4000)]
    whole = Pairs("sheets", "train", captions, keys, partial(pixel_image, sheets))
    ranges = range(2000), range(2000, 3000), range(3000, 4000)
    parts = zip(_SPLITS, ranges, strict=True)
    return [replace(whole.subset(rows), split=split) for split, rows in parts]


def against_clip(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of every run under every shift beside those of CLIP with the same seed, in points.

    Args:
        rows: of shortcuts.csv; predictions are left out.

    Returns:
        Of `cibr_book.intervals.against_clip` with `shift`, `beta` and `cca_dim`, the latter two 0
        where a method has none.
    """
    settings = pd.DataFrame([*rows["configuration"].map(json.loads)], rows.index)
    settings = settings.reindex(columns=["dose", "cca_dim"])
    runs = rows.assign(beta=settings["dose"], cca_dim=settings["cca_dim"])
    scores = runs.filter(regex="^(?:kept|removed|reversed)/(?!value)").columns.tolist()
    runs = runs[runs["method"] != "prediction"].fillna({"beta": 0.0, "cca_dim": 0.0})
    return intervals.against_clip(runs, scores, "shift", ["beta", "cca_dim"])


def effects(rows: pd.DataFrame, beta: float) -> pd.DataFrame:
    """What a penalty changes under every shift, as theorem 3 predicts and as measured.

    Args:
        rows: of shortcuts.csv.
        beta: of vMF.

    Returns:
        One row per condition with a prediction and a shift: `condition, shift`; `predicted`, the
        change of log V; `measured`, that of recall from CLIP in points; both are means over seeds;
        and `seeds`, the measured ones by seed.
    """
    of_vmf = against_clip(rows).query(
        "method == 'CIBR vMF' and beta == @beta and score == 'recall'"
    )
    recalls = of_vmf.pivot(index=["condition", "seed"], columns="shift", values="difference")
    values = rows[rows["method"] == "prediction"].set_index(["condition", "seed"])
    table = []
    for condition in values.index.unique("condition"):
        for shift in SHIFTS:
            with_penalty, without = f"{shift}/value@{beta:g}", f"{shift}/value@0"
            expected = np.log(values[with_penalty] / values[without])[condition].mean()
            seeds = recalls[shift][condition].to_numpy()
            table.append([condition, shift, expected, seeds.mean(), seeds])
    return pd.DataFrame(table, columns=["condition", "shift", "predicted", "measured", "seeds"])


def interactions(rows: pd.DataFrame, beta: float) -> pd.DataFrame:
    """How much better a penalty does under a shift than without one: `effects` minus the same with
    the shortcut kept, in the same columns.
    """
    cells = effects(rows, beta).set_index(["condition", "shift"])
    shifted = cells.drop("kept", level="shift")
    kept = cells.xs("kept", level="shift").loc[shifted.index.get_level_values("condition")]
    return (shifted - kept.to_numpy()).infer_objects().reset_index()


def hypothesis_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/finished/shortcuts.md, each with its exact test and Holm's
    correction.

    Args:
        rows: of shortcuts.csv, all of them.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    recall = against_clip(rows).query("score == 'recall'")
    names = ["condition", "method", "beta", "cca_dim", "shift"]
    by_seed = recall.set_index([*names, "seed"]).sort_index()

    def effect(condition: str, method: str, beta=0.0, dim=0, shift="removed", what="difference"):
        return by_seed.loc[(condition, method, beta, dim, shift), what]

    table = []
    for pair in ("water, tint", "child, blur"):
        tied, none = (effect(f"{pair}, {p}", "CIBR vMF", 0.1) for p in ("1", "0.5"))
        table += [("Ha", f"{pair}: worse at 1 than at 0.5", none - tied)]
        table += [("Ha", f"{pair}: a loss at 1", -tied)]
        for condition in (f"{pair}, 1", f"{pair} named, 1"):
            shifts = ("removed", "kept")
            less = [effect(condition, "closed-form CCA", 0.0, 384, shift) for shift in shifts]
            table += [("Hb", f"{condition}: CCA loses less", less[0] - less[1])]
    for towers in ("heads", "from scratch"):
        gain = effect(f"sheets with a gap, {towers}, 0.3", "CIBR vMF", 0.1)
        table += [("Hd", f"sheets with a gap, {towers}: a gain at 0.3", gain)]
    cells = interactions(rows, 0.3)
    measured, gains = np.stack([*cells["seeds"]]), (cells["predicted"] > 0).to_numpy()
    table += [("Hc", "better where predicted", measured[gains].mean(0) - measured[~gains].mean(0))]
    return intervals.outcomes(table)


def beyond_temperature(rows: pd.DataFrame, beta: float) -> pd.DataFrame:
    """What a penalty changes in heads' recall on sheets beyond a temperature of (1 + beta) times
    CLIP's, as planned at the end of experiments/finished/shortcut-controls.yaml.

    Args:
        rows: of shortcuts.csv, those of the plan.
        beta: of vMF, 0.3 (claimed) or 1.

    Returns:
        One row per `condition`, in points of recall: with the shortcut removed, the mean `penalty`
        and `hotter` temperature minus CLIP, and the `difference` of the two with its interval
        `low, high`; the same difference as `kept`; the `claim`, "gain" if the paper's colour is
        weaker than all letters, else "loss"; and its `holm` and `outcome`, see
        `cibr_book.intervals.outcomes`.
    """
    hotter = {0.3: "CLIP, 1.3 times the temperature", 1: "CLIP, twice the temperature"}[beta]
    recall = against_clip(rows).query("score == 'recall'")
    names = ["condition", "method", "beta", "shift", "seed"]
    by_seed = recall.set_index(names)["difference"].sort_index()
    drawn = rows.groupby("condition", sort=False)["configuration"].first().map(json.loads)
    claims, table = [], []
    for condition, settings in drawn.items():
        of = {s: by_seed.loc[condition, "CIBR vMF", beta, s] for s in ("removed", "kept")}
        than = {s: by_seed.loc[condition, hotter, 0.0, s] for s in ("removed", "kept")}
        lead = of["removed"] - than["removed"]
        is_weaker = settings["shortcut"]["named"] ** 0.5 < min(settings["sheets"])
        name, sign = ("gain", 1) if is_weaker else ("loss", -1)
        claims.append((name, condition, sign * lead))
        means = of["removed"].mean(), than["removed"].mean(), (of["kept"] - than["kept"]).mean()
        table.append([condition, name, *means, *mean_interval(lead.to_numpy())])
    columns = ["condition", "claim", "penalty", "hotter", "kept", "difference", "low", "high"]
    tests = intervals.outcomes(claims)[["holm", "outcome"]]
    return pd.DataFrame(table, columns=columns).join(tests)
