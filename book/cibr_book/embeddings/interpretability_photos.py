"""Comparison of two methods on photos, for the chapter on interpretability.

    CIBR_DATA=... python -m cibr_book.embeddings.interpretability_photos CLIP=runs/a,runs/b "CIBR
    vMF=runs/c,runs/d"

Each method is given by its name and the folders of its models, one per training seed, in the same
order. The models retrieve the captions of Flickr8k's test photos; attribution maps are computed for
the first of each. Written to data/results are interpretability.csv, one row per quantity with its
interval, and interpretability_maps.csv, the maps of the six photos in book/thumbnails. Takes some
minutes on two cores.
"""

import argparse
from functools import partial
from itertools import combinations

import pandas as pd
import torch
from torch import Tensor

from cibr.data import Pairs, load_pairs
from cibr.metrics import bootstrap_interval, paired_difference
from cibr.models import DualEncoder
from cibr.models.features import embed_pairs, prepare
from cibr.utils import project_root, provenance
from cibr_book.embeddings import attribution

SHOWN = [10, 87, 245, 310, 522, 701]  # the photos in book/thumbnails
N_PHOTOS = 60  # for the deletion check
N_NOISE = 300  # photos whose feature maps give the statistics of the noise
# The price of a nat, in cosine; these maps have many more channels than those of glyphs.
_WEIGHT = 1e-5
_FRACTIONS = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)


def changed_answers(models: list[list[DualEncoder]], test: Pairs) -> list[dict]:
    """Shares of photos whose top caption changes between correct and incorrect, between methods and
    seeds.
    """
    hits = []
    for of_method in models:
        sides = [embed_pairs(model, prepare(model, test, truncate=True)) for model in of_method]
        top = [test.text_to_image()[(images @ texts.T).argmax(1)] for images, texts in sides]
        hits.append(torch.stack(top) == torch.arange(len(test)))
    first, second = hits
    rows = [
        _row("changed answers", "between methods, same seed", first ^ second),
        _row("gained", "right by the second alone", second & ~first),
        _row("lost", "right by the first alone", first & ~second),
    ]
    by_seed = [a ^ b for of_method in hits for a, b in combinations(of_method, 2)]
    if by_seed:
        changed = torch.stack(by_seed)
        rows.append(_row("changed answers", "between two seeds of one method", changed))
    change = paired_difference([first.float()], [second.float()])
    interval = change["mean"], change["low"], change["high"]
    return [*rows, _row("second minus first", "image_to_text_recall@1", second, interval)]


def explained_photos(
    models: dict[str, DualEncoder], test: Pairs
) -> tuple[list[dict], pd.DataFrame]:
    """Sanity checks of bottleneck maps of photos and their first captions, and the maps of the
    photos shown.

    A map is checked by deletion against the map of another photo, a control with similar patches.
    Each model is compared with a copy with randomised weights.
    """
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
    asked = [*SHOWN, *order[-N_PHOTOS:]]
    rows = []
    tables = []
    maps = {}
    for method, model in models.items():
        randomised = attribution.randomised_weights(model)
        for name, encoder in {method: model, f"{method}, randomised": randomised}.items():
            maps[name], gain = _maps_and_gain(encoder, test, asked, order[:N_NOISE])
            rows.append(_row("own map minus another photo's", name, gain[None, len(SHOWN) :]))
        for i, grid in zip(SHOWN, maps[method], strict=False):
            cells = pd.DataFrame(grid.numpy()).stack().rename_axis(["row", "column"])
            table = cells.reset_index(name="nats")
            tables.append(table.assign(method=method, file=f"s{i:07}.jpg"))
    for a, b in combinations(maps, 2):
        agreement = attribution.map_agreement(maps[a][len(SHOWN) :], maps[b][len(SHOWN) :])
        rows.append(_row("rank correlation of maps", f"{a} | {b}", agreement[None]))
    return rows, pd.concat(tables)[["method", "file", "row", "column", "nats"]]


def _maps_and_gain(
    model: DualEncoder, test: Pairs, asked: list[int], noisy: list[int]
) -> tuple[Tensor, Tensor]:
    """Maps of the requested photos, and their mean deletion score minus that of another's map."""
    lower, upper = attribution.split_image_tower(model)
    texts = model.embed_texts([test.captions[i][0] for i in asked], truncate=True)
    score = partial(attribution.cosine_score(model), texts=texts)
    pixels, others = (
        model.normalise(model.preprocess([test.image(i) for i in rows])) for rows in (asked, noisy)
    )
    with torch.no_grad():
        features = lower(pixels)
        noise = lower(others)
    search = dict(weight=_WEIGHT, n_steps=25, n_noise=2)
    nats, _ = attribution.bottleneck_maps(features, texts, upper, noise, **search)
    large = attribution.enlarge(nats, pixels.shape[-1])
    # Deleted pixels have the mean colour, which is 0 after normalisation.
    own, wrong = (
        attribution.deletion_curve(pixels, maps, score, 0.0, _FRACTIONS).mean(1)
        for maps in (large, large.roll(1, 0))
    )
    return nats, own - wrong


def _row(quantity: str, case: str, values: Tensor, interval: tuple | None = None) -> dict:
    """A row with a value and its interval, by default the mean of values [s, n] over models and
    photos, with an interval over photos.
    """
    value, low, high = interval or bootstrap_interval(values.double().mean(0))
    return dict(quantity=quantity, case=case, value=value, low=low, high=high, n=values.shape[1])


def main() -> None:
    """Writes both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("method", nargs=2, help="NAME=FOLDER,FOLDER,...")
    models = {}
    for method in parser.parse_args().method:
        name, _, folders = method.partition("=")
        models[name] = [DualEncoder.from_pretrained(f).eval() for f in folders.split(",")]
    test = load_pairs("flickr8k", "test")
    rows, maps = explained_photos({name: of_seed[0] for name, of_seed in models.items()}, test)
    table = pd.DataFrame([*changed_answers(list(models.values()), test), *rows])
    n_seeds = len(next(iter(models.values())))
    table = table.assign(methods=" | ".join(models), n_seeds=n_seeds, commit=provenance()["commit"])
    results = project_root() / "data" / "results"
    table.to_csv(results / "interpretability.csv", index=False, float_format="%.4g")
    maps.to_csv(results / "interpretability_maps.csv", index=False, float_format="%.4g")
    print(table.drop(columns="commit").to_string(index=False))


if __name__ == "__main__":
    main()
