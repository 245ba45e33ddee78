"""Recipes for heads on Flickr8k's photos: what the rows of recipes.csv and advice.csv say, and
features of the towers, of which draws of photos and captions pick rows.
"""

from functools import lru_cache

import pandas as pd

from cibr.data import Pairs, load_pairs
from cibr.metrics import mean_interval
from cibr.models import DualEncoder
from cibr.models.inputs import Inputs, prepare
from cibr.train import build_model, configure
from cibr_book import intervals

SEARCH = "text_to_image_mean"
# The simplest first, as in recipes.md.
RECIPES = ("CCA", "CLIP", "CLIP-averaged", "CCA-start", "CCA-anchor", "self-training")
RECIPES += ("CLIP+CCA", "CLIP+CLIP")
SETS = {"flickr8k": "flickr8k", "coco": "coco-mini"}  # test sets, by the start of a column's name


@lru_cache(maxsize=1)
def features() -> tuple[DualEncoder, dict[str, Inputs]]:
    """The towers, and features of the training, validation and test photos."""
    parts = {name: load_pairs("flickr8k", name) for name in ("train", "validation")}
    parts |= {name: load_pairs(data, "test") for name, data in SETS.items()}
    base = build_model(configure(dataset="flickr8k", model="frozen"), parts["train"])
    return base, {name: prepare(base, pairs) for name, pairs in parts.items()}


def picked(whole: Inputs, pairs: Pairs) -> Inputs:
    """Features of pairs whose photos and captions are among those of `whole`."""
    photos = {key: i for i, key in enumerate(whole.pairs.keys)}
    captions = {text: i for i, text in enumerate(whole.pairs.texts())}
    images = whole.images[[photos[key] for key in pairs.keys]]
    texts = whole.texts[0][[captions[text] for text in pairs.texts()]]
    labels = pairs.match_labels()[pairs.text_to_image()]
    return Inputs(pairs, images, (texts,), labels)


def against_clip(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of every run beside those of `CLIP` with the same draw, in points.

    Args:
        rows: of recipes.csv; trials are left out.

    Returns:
        Of `cibr_book.intervals.against_clip`, with `test`.
    """
    scores = rows.filter(regex=f"^(?:{'|'.join(SETS)})/").columns.tolist()
    return intervals.against_clip(rows[rows["seed"] >= 600], scores, "test")


def with_saved(rows: pd.DataFrame) -> pd.DataFrame:
    """Recipes, and beside them the model that comparing them would save.

    Args:
        rows: of advice.csv.

    Returns:
        The rows with `method` and `condition`, and for each folder those of two rules, both by
        search on its held-out photos: `highest`, the recipe with the highest recall, and
        `simplest`, the simplest until another is detectably better.
    """
    rows = rows.assign(condition=rows["photos"].map("{:,} photos".format), method=rows["recipe"])
    highest = rows.groupby(["photos", "seed"])[f"held_out/{SEARCH}"].idxmax()
    is_simplest = rows["simplest"].fillna("").str.contains(SEARCH)
    chosen = {"highest": rows.loc[highest], "simplest": rows[is_simplest]}
    return pd.concat([rows, *(part.assign(method=name) for name, part in chosen.items())])


def heads_cca_means(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean recall of heads + CCA and of their parts, in per cent.

    Args:
        rows: of heads_cca.csv; those of trials are left out.

    Returns:
        By `condition` and `method`, with two columns a test set, such as `flickr8k search` and
        `flickr8k text retrieval`: the mean of recall@1, 5 and 10, over the draws.
    """
    tests = rows[rows["stage"] == "tests"].set_index(["condition", "method"])
    found = {}
    for test in SETS:
        for way, name in (("text_to_image", "search"), ("image_to_text", "text retrieval")):
            of = tests.filter(regex=f"^{test}/{way}_recall@").mean(axis=1)
            found[f"{test} {name}"] = 100 * of.groupby(level=[0, 1]).mean()
    return pd.DataFrame(found)


def claim_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/finished/recipes.md about searching Flickr8k's test photos.

    Args:
        rows: of recipes.csv, all of them.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    table = against_clip(rows).query("test == 'flickr8k' and score == 'text_to_image_mean'")
    of = table.set_index(["condition", "method", "seed"])["difference"].sort_index()
    claims = [
        ("1", f"self-training gains, {n}", of[f"{n} photos", "self-training"])
        for n in ("150", "600", "3,000")
    ]
    claims += [("2", "CCA gains, 150", of["150 photos", "CCA"])]
    claims += [("2", "CCA loses, 6,000", -of["6,000 photos", "CCA"])]
    for n in ("600", "3,000", "6,000"):
        claims += [("3", f"CLIP+CCA gains, {n}", of[f"{n} photos", "CLIP+CCA"])]
    for n in ("600", "3,000"):
        above = of[f"{n} photos", "CLIP+CCA"] - of[f"{n} photos", "CLIP+CLIP"]
        claims += [("4", f"CLIP+CCA is above CLIP+CLIP, {n}", above)]
    claims += [("4", "CLIP+CLIP gains, 6,000", of["6,000 photos", "CLIP+CLIP"])]
    wrong = of["3,000 photos, 30 % wrong captions", "CCA-anchor"]
    claims += [("5", "CCA-anchor gains, 3,000 with 30 % wrong captions", wrong)]
    return intervals.outcomes(claims)


def advice(rows: pd.DataFrame) -> pd.DataFrame:
    """The simplest recipe, without self-training, that the one of highest mean does not beat.

    Args:
        rows: of recipes.csv, all of them.

    Returns:
        One row per condition and direction, `text_to_image_mean` or `image_to_text_mean`, by
        Flickr8k's test photos: `condition, score, advice`, its `difference` from CLIP in points,
        `low, high`, and `coco`, the same difference on coco-mini.
    """
    table = against_clip(rows[rows["method"] != "self-training"])
    directions = ["text_to_image_mean", "image_to_text_mean"]
    found = []
    for (condition, score), part in table.groupby(["condition", "score"], sort=False):
        if score not in directions:
            continue
        by_test = {
            test: own.pivot(index="seed", columns="method", values="difference")
            for test, own in part.groupby("test")
        }
        of = by_test["flickr8k"][[name for name in RECIPES if name in by_test["flickr8k"]]]
        best = of[of.mean().idxmax()]
        behind = {n: mean_interval((best - of[n]).to_numpy())[1] for n in of if n != best.name}
        name = next(n for n in of if behind.get(n, 0.0) <= 0)
        interval = mean_interval(of[name].to_numpy())
        found.append([condition, score, name, *interval, by_test["coco"][name].mean()])
    columns = ["condition", "score", "advice", "difference", "low", "high", "coco"]
    return pd.DataFrame(found, columns=columns)
