"""Comparison of two methods on photos, for the chapter on interpretability.

    CIBR_DATA=... python -m cibr_book.interpretability_photos CLIP=runs/a,runs/b "CIBR
    vMF=runs/c,runs/d"

Each method is given by its name and the folders of its models, one per training seed, in the same
order. The models retrieve the captions of Flickr8k's test photos; attribution maps are computed for
the first of each. Written to data/results are interpretability.csv, one row per quantity with its
interval, and interpretability_maps.csv, the maps of the six photos in book/thumbnails. Takes some
minutes on two cores.
"""

import argparse
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from cibr.data import Pairs, load_pairs
from cibr.metrics import bootstrap_interval, paired_difference
from cibr.models import DualEncoder
from cibr.models.features import embed_pairs, prepare
from cibr.utils import project_root, provenance
from cibr_book import attribution

SHOWN = [10, 87, 245, 310, 522, 701]  # the photos in book/thumbnails
N_PHOTOS = 60  # for the deletion check
N_NOISE = 300  # photos whose feature maps give the statistics of the noise
WEIGHT = (
    1e-5  # the price of a nat, in cosine; these maps have many more channels than those of glyphs
)
FRACTIONS = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)


def changed_answers(models: list[list[DualEncoder]], test: Pairs) -> list[dict]:
    """Shares of photos whose top caption changes between correct and incorrect, between methods and
    seeds.
    """
    hits = []
    for of_method in models:
        sides = [embed_pairs(model, prepare(model, test, truncate=True)) for model in of_method]
        found = [test.text_to_image()[(images @ texts.T).argmax(1)] for images, texts in sides]
        hits.append(torch.stack(found) == torch.arange(len(test)))
    first, second = hits
    rows = [
        _row("changed answers", "between methods, same seed", first ^ second),
        _row("gained", "right by the second alone", second & ~first),
        _row("lost", "right by the first alone", first & ~second),
    ]
    if by_seed := [a ^ b for of_method in hits for a, b in combinations(of_method, 2)]:
        rows.append(
            _row("changed answers", "between two seeds of one method", torch.stack(by_seed))
        )
    ends = paired_difference([first.float()], [second.float()])
    ends = {"value": ends["mean"], "low": ends["low"], "high": ends["high"], "n": len(test)}
    return [*rows, {"quantity": "second minus first", "case": "image_to_text_recall@1"} | ends]


def explained_photos(
    models: dict[str, DualEncoder], test: Pairs
) -> tuple[list[dict], pd.DataFrame]:
    """Sanity checks of bottleneck maps of photos and their first captions, and the maps of the
    photos shown.

    A map is checked by deletion against the map of another photo, a control with similar patches.
    Each model is compared with a copy with randomised weights.
    """
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
    asked, rows, shown, checked = [*SHOWN, *order[-N_PHOTOS:]], [], [], {}
    for method, model in models.items():
        nats = checked[method] = _maps_and_row(method, model, test, asked, order[:N_NOISE], rows)
        for i, grid in zip(SHOWN, nats, strict=False):
            cells = (
                pd.DataFrame(grid.numpy())
                .stack()
                .rename_axis(["row", "column"])
                .reset_index(name="nats")
            )
            shown.append(cells.assign(method=method, file=f"s{i:07}.jpg"))
        name, randomised = f"{method}, randomised", attribution.randomised_weights(model)
        checked[name] = _maps_and_row(name, randomised, test, asked, order[:N_NOISE], rows)
    for a, b in combinations(checked, 2):
        agreement = attribution.map_agreement(*(checked[name][len(SHOWN) :] for name in (a, b)))
        rows.append(_row("rank correlation of maps", f"{a} | {b}", agreement[None]))
    return rows, pd.concat(shown)[["method", "file", "row", "column", "nats"]]


def _maps_and_row(
    name: str, model: DualEncoder, test: Pairs, asked: list[int], noisy: list[int], rows: list[dict]
) -> Tensor:
    """The maps of the requested photos; the result of their deletion check is added to `rows`."""
    lower, upper = attribution.split_image_tower(model)
    texts = model.embed_texts([test.captions[i][0] for i in asked], truncate=True)
    pixels, others = (
        model.normalise(model.preprocess([test.image(i) for i in n])) for n in (asked, noisy)
    )
    with torch.no_grad():
        features, noise = lower(pixels), lower(others)
    nats, _ = attribution.bottleneck_maps(
        features, texts, upper, noise, WEIGHT, n_steps=25, n_noise=2
    )
    large, score = attribution.enlarge(nats, pixels.shape[-1]), attribution.cosine_score(model)
    # Deleted pixels have the mean colour, which is 0 after normalisation.
    own, another = (
        attribution.deletion_curve(pixels, maps, lambda x: score(x, texts), 0.0, FRACTIONS).mean(1)
        for maps in (large, large.roll(1, 0))
    )
    rows.append(_row("own map minus another photo's", name, (own - another)[None, len(SHOWN) :]))
    return nats


def _row(quantity: str, case: str, values: Tensor) -> dict:
    """A row with the mean of values [s, n] over models and photos, with an interval over photos."""
    value, low, high = bootstrap_interval(values.double().mean(0))
    return {
        "quantity": quantity,
        "case": case,
        "value": value,
        "low": low,
        "high": high,
        "n": values.shape[1],
    }


def main() -> None:
    """Writes both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", nargs=2, help="NAME=FOLDER,FOLDER,...")
    given = [method.split("=", 1) for method in parser.parse_args().method]
    models = {
        n: [DualEncoder.from_pretrained(f).eval() for f in folders.split(",")]
        for n, folders in given
    }
    test, results = load_pairs("flickr8k", "test"), project_root() / "data" / "results"
    rows, maps = explained_photos({name: own[0] for name, own in models.items()}, test)
    table = pd.DataFrame([*changed_answers(list(models.values()), test), *rows])
    n_seeds = len(next(iter(models.values())))
    table = table.assign(methods=" | ".join(models), n_seeds=n_seeds, commit=provenance()["commit"])
    table.to_csv(results / "interpretability.csv", index=False, float_format="%.4g")
    maps.to_csv(results / "interpretability_maps.csv", index=False, float_format="%.4g")
    print(table.drop(columns="commit").to_string(index=False))


if __name__ == "__main__":
    main()
