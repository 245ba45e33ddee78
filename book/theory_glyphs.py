"""Does contrastive training alone discard what only the pictures know? `python book/theory_glyphs.py`

Tiny models are trained on the glyphs at beta = 0, over temperature, batch size and seed. Two probes, a linear one
and a small network, then look for the known factors of the drawings that no caption tells: in the pixels, in the
untrained model and in the trained one. They are fitted on half of the characters and measured on the other half.
Every probe is a row of data/results/theory_glyphs.csv; a rerun adds only what is missing. About a quarter of an
hour on two cores.
"""

import argparse
import tempfile

import pandas as pd
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits

import cibr
from cibr.information import probe_nats
from cibr.models import DualEncoder
from cibr.paths import project_root
from cibr.train.output import provenance

RESULTS = project_root() / "data" / "results" / "theory_glyphs.csv"
SETTINGS = [(0.05, 256), (0.15, 256), (0.5, 256), (0.15, 64)]  # temperature, batch size
SEEDS = (0, 1, 2)
EPOCHS = 3
READERS = {"linear": 0, "network": 128}  # widths of the hidden layer


def probed(train: cibr.Pairs) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The nuisance factors of the training pictures as classes, and which are held out, by character."""
    table = train.factors
    columns = {
        "typeface": table["typeface"],
        "weight": table["weight"],
        "slant": table["slant"],
        "polarity": table["ink"] > table["paper"],
        "size": pd.cut(table["size"], [0, 20, 24, 99], labels=False),
        "x": table["x"].clip(-1, 1),
        "y": table["y"].clip(-1, 1),
    }
    factors = {
        name: torch.tensor(pd.factorize(column)[0]) for name, column in columns.items()
    }
    return factors, train.labels % 2 == 0


@torch.no_grad()
def layers(model: DualEncoder, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each layer says of the pictures: `pooled` before the head, and the unit `embedding`."""
    model.eval()
    encoded = [model.encode_images(model.normalise(part)) for part in pixels.split(500)]
    # The places of the pooled map are averaged: its width is then that of the embedding.
    pooled = torch.cat([part.pooled for part in encoded]).unflatten(1, (-1, 16)).mean(2)
    return {
        "pooled": pooled,
        "embedding": torch.cat([part.features for part in encoded]),
    }


def probe(
    features: torch.Tensor, factors: dict[str, torch.Tensor], held_out: torch.Tensor
) -> list[dict]:
    """A row a factor and a reader."""
    with threadpool_limits(1):  # matrices this small only wait for each other
        return [
            {"factor": name, "reader": reader}
            | probe_nats(features, factor, held_out, width)
            for name, factor in factors.items()
            for reader, width in READERS.items()
        ]


def run(
    temperature: float, batch_size: int, seed: int, splits: tuple, epochs: int
) -> pd.DataFrame:
    """Trains one model and probes it, at the first setting also before training."""
    factors, held_out = probed(splits[0])
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
        pixels = model.preprocess(list(splits[0].images()))
        found = {}
        # What comes before training is the same for all settings.
        if (temperature, batch_size) == SETTINGS[0]:
            found["pixels"] = F.avg_pool2d(pixels[:, :1].float(), 2).flatten(1)
            found |= {
                f"untrained {name}": z for name, z in layers(model, pixels).items()
            }
        history = cibr.fit(model, splits[0], splits[1], config)
        found |= {f"trained {k}": v for k, v in layers(model, pixels).items()}
    setting = dict(
        temperature=temperature, batch_size=batch_size, seed=seed, epochs=epochs
    )
    last = history.iloc[-1]
    setting |= {
        "validation_recall@1": last["image_to_text_recall@1"],
        "mi_lower_bound_nats": last["mi_lower_bound_nats"],
    }
    rows = [
        setting | {"layer": name} | row
        for name, z in found.items()
        for row in probe(z, factors, held_out)
    ]
    source = provenance(config)
    return (
        pd.DataFrame(rows)
        .round(4)
        .assign(commit=source["commit"], torch=source["versions"]["torch"])
    )


def main() -> None:
    """Runs what the table lacks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    epochs = parser.parse_args().epochs
    splits = cibr.load_pairs("glyphs", "train"), cibr.load_pairs("glyphs", "validation")
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        for temperature, batch_size in SETTINGS:
            done = pd.read_csv(RESULTS) if RESULTS.exists() else pd.DataFrame()
            key = dict(
                temperature=temperature, batch_size=batch_size, seed=seed, epochs=epochs
            )
            if len(done) and (done[list(key)] == pd.Series(key)).all(axis=1).any():
                continue
            rows = run(temperature, batch_size, seed, splits, epochs)
            pd.concat([done, rows]).to_csv(RESULTS, index=False)
            print(
                f"temperature {temperature}, batch size {batch_size}, seed {seed}: done",
                flush=True,
            )


if __name__ == "__main__":
    main()
