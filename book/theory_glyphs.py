"""Does contrastive training alone discard what only the pictures know? `python book/theory_glyphs.py`

Tiny models are trained on the glyphs at beta = 0, over temperature, batch size and seed. A linear probe then looks
for the known factors of the drawings that no caption tells, in the pixels, in the untrained model and in the
trained one; it is fitted on half of the characters and measured on the other half. Every probe is a row of
data/results/theory_glyphs.csv; a rerun adds only what is missing. About twelve minutes on two cores.
"""

import argparse
import tempfile

import pandas as pd
import torch
import torch.nn.functional as F

import cibr
from cibr.information import probe_nats
from cibr.models import DualEncoder
from cibr.paths import project_root
from cibr.train.output import provenance

RESULTS = project_root() / "data" / "results" / "theory_glyphs.csv"
SETTINGS = [(0.05, 256), (0.15, 256), (0.5, 256), (0.15, 64)]  # temperature, batch size
SEEDS = (0, 1, 2)
EPOCHS = 3
N_PROBED = 4000


def probed_pairs(train: cibr.Pairs) -> tuple[cibr.Pairs, dict[str, torch.Tensor], torch.Tensor]:
    """Pairs of the training set, their nuisance factors as classes, and which are held out, by character."""
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:N_PROBED]
    pairs = train.subset(rows)
    table = pairs.factors
    columns = {
        "typeface": table["typeface"],
        "weight": table["weight"],
        "slant": table["slant"],
        "polarity": table["ink"] > table["paper"],
        "size": pd.cut(table["size"], [0, 20, 24, 99], labels=False),
        "x": table["x"].clip(-1, 1),
        "y": table["y"].clip(-1, 1),
    }
    factors = {name: torch.tensor(pd.factorize(column)[0]) for name, column in columns.items()}
    return pairs, factors, pairs.labels % 2 == 0


@torch.no_grad()
def layers(model: DualEncoder, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each layer says of the pictures: `pooled` before the head, and the unit `embedding`."""
    model.eval()
    encoded = [model.encode_images(model.normalise(part)) for part in pixels.split(500)]
    # The places of the pooled map are averaged: its width is then that of the embedding.
    pooled = torch.cat([part.pooled for part in encoded]).unflatten(1, (-1, 16)).mean(2)
    return {"pooled": pooled, "embedding": torch.cat([part.features for part in encoded])}


def probe(features: torch.Tensor, factors: dict[str, torch.Tensor], held_out: torch.Tensor) -> list[dict]:
    """A row a factor."""
    return [{"factor": name} | probe_nats(features, factor, held_out) for name, factor in factors.items()]


def run(temperature: float, batch_size: int, seed: int, splits: tuple, epochs: int) -> pd.DataFrame:
    """Trains one model and probes it before and after."""
    pairs, factors, held_out = probed_pairs(splits[0])
    with tempfile.TemporaryDirectory() as folder:
        config = cibr.configure(
            dataset="glyphs",
            model="tiny",
            beta=0.0,
            temperature=temperature,
            batch_size=batch_size,
            epochs=epochs,
            seed=seed,
            output_dir=folder,
        )
        model = cibr.build_model(config, splits[0])
        pixels = model.preprocess(list(pairs.images()))
        grey = F.avg_pool2d(pixels[:, :1].float(), 2).flatten(1)
        found = {"pixels": grey, **{f"untrained {k}": v for k, v in layers(model, pixels).items()}}
        history = cibr.fit(model, splits[0], splits[1], config)
        found |= {f"trained {k}": v for k, v in layers(model, pixels).items()}
    setting = dict(temperature=temperature, batch_size=batch_size, seed=seed, epochs=epochs)
    last = history.iloc[-1]
    setting |= {
        "validation_recall@1": last["image_to_text_recall@1"],
        "mi_lower_bound_nats": last["mi_lower_bound_nats"],
    }
    rows = [setting | {"layer": name} | row for name, z in found.items() for row in probe(z, factors, held_out)]
    source = provenance(config)
    return pd.DataFrame(rows).round(4).assign(commit=source["commit"], torch=source["versions"]["torch"])


def main() -> None:
    """Runs what the table lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    epochs = parser.parse_args().epochs
    splits = cibr.load_pairs("glyphs", "train"), cibr.load_pairs("glyphs", "validation")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for temperature, batch_size in SETTINGS:
            done = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame()
            key = dict(temperature=temperature, batch_size=batch_size, seed=seed, epochs=epochs)
            if len(done) and (done[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            rows = run(temperature, batch_size, seed, splits, epochs)
            pd.concat([done, rows]).to_csv(RESULTS, index=False)
            print(f"temperature {temperature}, batch size {batch_size}, seed {seed}: done", flush=True)


if __name__ == "__main__":
    main()
