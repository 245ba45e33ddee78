"""What two arms of the ablation do with photos: `CIBR_DATA=... python book/interpretability_flickr8k.py`.

For every training seed that the ablation's table has of both arms, the models under runs/ablation are asked for the
captions of Flickr8k's test photos, and for where a caption finds its photo. Written are
data/results/interpretability.csv, one row a finding with its interval, and interpretability_maps.csv, the maps of
the six thumbnails that book/thumbnails.py makes. Some minutes on two cores.
"""

import argparse
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch

from cibr import DualEncoder, interpret, load_pairs
from cibr.data import Pairs
from cibr.inputs import embed_pairs, prepare
from cibr.metrics import bootstrap_interval, paired_difference
from cibr.paths import project_root
from cibr.results import provenance
from cibr.sweep import read_arms
from cibr.sweep.findings import chosen

RESULTS = project_root() / "data" / "results"
THUMBNAILS = project_root() / "book" / "thumbnails" / "test"
N_PHOTOS = 60  # whose maps are checked by deletion
N_NOISE = 300  # photos whose feature maps the noise looks like
WEIGHT = 1e-5  # what a nat costs in cosine; these maps have many more channels than those of glyphs
FRACTIONS = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, default=RESULTS / "ablation.csv")
    parser.add_argument("--runs", type=Path, default=project_root() / "runs/ablation")
    parser.add_argument("--arms", nargs=2, default=("CLIP", "CIBR vMF"))
    options = parser.parse_args()
    folders = runs_of_both(options.table, options.runs, options.arms)
    test = load_pairs("flickr8k", "test")
    rows = [*changed_answers(folders, test)]
    found, maps = look_into_photos(folders, test)
    table = pd.DataFrame([*rows, *found])
    table["arms"] = " | ".join(options.arms)
    table["n_seeds"] = len(next(iter(folders.values())))
    table["commit"] = provenance()["commit"]
    table.to_csv(RESULTS / "interpretability.csv", index=False, float_format="%.4g")
    maps.to_csv(RESULTS / "interpretability_maps.csv", index=False, float_format="%.4g")
    print(table.drop(columns="commit").to_string(index=False))


def runs_of_both(
    table: Path, runs: Path, arms: tuple[str, str]
) -> dict[str, list[Path]]:
    """The model folders of two arms on all of Flickr8k, in the order of their common seeds.

    Of an arm that ran at several weights the best on validation counts.
    """
    rows = read_arms(table)
    rows = rows[rows["setting"] == "flickr8k"].merge(chosen(rows))
    rows = rows[rows["run"].map(lambda run: (runs / run / "cibr.json").is_file())]
    found = {arm: rows[rows["arm"] == arm].set_index("seed")["run"] for arm in arms}
    if absent := [arm for arm, own in found.items() if own.empty]:
        raise SystemExit(f"no model of the arm {absent[0]!r} under {runs}")
    seeds = sorted(set.intersection(*(set(own.index) for own in found.values())))
    return {arm: [runs / own[seed] for seed in seeds] for arm, own in found.items()}


def changed_answers(folders: dict[str, list[Path]], test: Pairs) -> list[dict]:
    """How many photos change from a right first caption to a wrong one or back: by the arm, by the seed."""
    of_photo = test.text_to_image()
    right = {}
    for arm, of_arm in folders.items():
        right[arm] = []
        for folder in of_arm:
            model = DualEncoder.from_pretrained(folder).eval()
            images, texts = embed_pairs(model, prepare(model, test, truncate=True))
            first = (images @ texts.T).argmax(1)
            right[arm].append(of_photo[first] == torch.arange(len(test)))
    clip, cibr = right.values()
    by_seed = [a ^ b for arm in right.values() for a, b in combinations(arm, 2)]
    by_arm = [a ^ b for a, b in zip(clip, cibr, strict=True)]
    rows = [
        _row("answers that turn", "between the arms, same seed", by_arm),
        _row("gained", "right by the second alone", _apart(cibr, clip)),
        _row("lost", "right by the first alone", _apart(clip, cibr)),
    ]
    if by_seed:
        name = "between two seeds of one arm"
        rows.append(_row("answers that turn", name, by_seed))
    ends = paired_difference([torch.stack(clip).float()], [torch.stack(cibr).float()])
    name = "image_to_text_recall@1"
    rows.append(
        {
            "quantity": "second minus first",
            "case": name,
            "value": ends["mean"],
            "low": ends["low"],
            "high": ends["high"],
            "n": len(test),
        }
    )
    return rows


def look_into_photos(
    folders: dict[str, list[Path]], test: Pairs
) -> tuple[list[dict], pd.DataFrame]:
    """Maps of the first seed's models: deletion on some photos, and the thumbnails' maps themselves."""
    chosen = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    noisy, asked = chosen[:N_NOISE].tolist(), chosen[-N_PHOTOS:].tolist()
    shown = [test.keys.index(key) for key in thumbnail_keys(test)]
    rows, maps, kept = [], [], {}
    for arm, (folder, *_) in folders.items():
        model = DualEncoder.from_pretrained(folder).eval()
        for name, who in {
            arm: model,
            f"{arm}, shuffled": interpret.scrambled(model),
        }.items():
            nats, curves = explain(who, model, test, [*shown, *asked], noisy)
            kept[name] = nats[len(shown) :]
            if who is model:
                maps += map_rows(arm, test, shown, nats)
            below = {k: curve[len(shown) :].mean(1) for k, curve in curves.items()}
            rows += [
                _row("mean cosine, pixels deleted", f"{name} | {order}", [values])
                for order, values in below.items()
            ]
            # The fair control: patches of the same kind, from a photo of something else.
            apart = below["map"] - below["map of another photo"]
            rows.append(_row("own map minus another photo's", name, [apart]))
    for a, b in combinations(kept, 2):
        agreement = interpret.map_agreement(kept[a], kept[b])
        rows.append(_row("rank correlation of maps", f"{a} | {b}", [agreement]))
    return rows, pd.DataFrame(maps)


def explain(
    model: DualEncoder,
    judge: DualEncoder,
    test: Pairs,
    asked: list[int],
    noisy: list[int],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Bottleneck maps of photos and their first captions, and the judge's cosines as pixels are deleted by them."""
    lower, upper = interpret.split_image_tower(model)
    low, up = interpret.split_image_tower(judge)
    pixels = judge.normalise(judge.preprocess([test.image(i) for i in asked]))
    others = judge.normalise(judge.preprocess([test.image(i) for i in noisy]))
    texts = judge.embed_texts([test.captions[i][0] for i in asked], truncate=True)
    with torch.no_grad():
        features, noise = lower(pixels), lower(others)
    nats, _ = interpret.bottleneck_maps(
        features,
        texts,
        upper,
        noise.mean(0),
        noise.std(0),
        WEIGHT,
        n_steps=25,
        n_noise=2,
    )
    side = pixels.shape[-1]
    large = interpret.enlarge(nats, side)
    places = torch.rand(nats.shape, generator=torch.Generator().manual_seed(0))
    orders = {
        "map": large,
        "map of another photo": large.roll(1, 0),
        "random order": interpret.enlarge(places, side),
    }
    grey = 0.0  # the mean colour, after normalisation

    def score(x: torch.Tensor) -> torch.Tensor:
        return (up(low(x)) * texts).sum(1)

    curves = {
        name: interpret.deletion_curve(pixels, order, score, grey, FRACTIONS)
        for name, order in orders.items()
    }
    return nats, curves


def thumbnail_keys(test: Pairs) -> list[str]:
    """The keys of the photos that the book shows."""
    stems = sorted(path.stem for path in THUMBNAILS.glob("*.jpg"))
    return [key for stem in stems for key in test.keys if key.split("/")[-1] == stem]


def map_rows(arm: str, test: Pairs, shown: list[int], nats: torch.Tensor) -> list[dict]:
    """The thumbnails' maps, one row a place."""
    return [
        {
            "arm": arm,
            "file": f"{test.keys[i].split('/')[-1]}.jpg",
            "row": row,
            "column": column,
            "nats": float(value),
        }
        for i, places in zip(shown, nats, strict=False)
        for row, line in enumerate(places)
        for column, value in enumerate(line)
    ]


def _apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[torch.Tensor]:
    return [x & ~y for x, y in zip(a, b, strict=True)]


def _row(quantity: str, case: str, values: list[torch.Tensor]) -> dict:
    """Mean over photos and pairs of models, with an interval over photos."""
    of_photo = torch.stack([v.double() for v in values]).mean(0)
    value, low, high = bootstrap_interval(of_photo)
    ends = {"value": value, "low": low, "high": high, "n": len(of_photo)}
    return {"quantity": quantity, "case": case, **ends}


if __name__ == "__main__":
    main()
