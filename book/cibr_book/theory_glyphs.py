"""Does contrastive training alone discard image-only information? An experiment on glyphs.

`python -m cibr_book.theory_glyphs` trains tiny models at beta = 0 over temperature, batch size,
epochs and seed. A linear probe and a small network then predict the image-only factors from the
pixels, the untrained and the trained model. They are trained on half of the characters and
evaluated on the other half. Each probe is a row of data/results/theory_glyphs.csv; a rerun adds
only what is missing. It takes about half an hour on two cores.
"""

import itertools
import tempfile

import pandas as pd
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits
from torch import Tensor

import cibr
from cibr.utils import project_root, provenance, write_atomically
from cibr_book.probes import factor_codes, probe_nats

TABLE = project_root() / "data" / "results" / "theory_glyphs.csv"
# Temperature, batch size and epochs.
CONDITIONS = [(temperature, 256, 3) for temperature in (0.05, 0.15, 0.5)]
CONDITIONS += [(0.15, 64, 3), (0.05, 256, 7), (0.15, 256, 7)]
SEEDS = (0, 1)
PROBES = {"linear": 0, "network": 128}  # widths of the hidden layer


@torch.no_grad()
def _layers(model: cibr.DualEncoder, pixels: Tensor, prefix: str) -> dict[str, Tensor]:
    """`pooled` features before the head, averaged over positions to the embedding's width, and the
    `embedding`.
    """
    parts = [model.eval().encode_images(model.normalise(part)) for part in pixels.split(500)]
    pooled = torch.cat([part.pooled for part in parts]).unflatten(1, (-1, 16)).mean(2)
    embedding = torch.cat([part.features for part in parts])
    return {f"{prefix} pooled": pooled, f"{prefix} embedding": embedding}


def probe_run(train: cibr.Pairs, validation: cibr.Pairs, **settings) -> pd.DataFrame:
    """Trains and probes one model; under the first condition also the pixels and the untrained
    model.

    Args:
        train: glyphs with the `factors` to probe.
        validation: glyphs for the validation recall.
        settings: `temperature, batch_size, seed, epochs`, which are also columns of the rows.

    Returns:
        Rows, one per layer, factor and probe.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = settings | {"beta": 0.0, "output_dir": folder}
        config = cibr.configure(dataset="glyphs", model="tiny", **options)
        model = cibr.build_model(config, train)
        pixels = model.preprocess(list(train.images()))
        features = {}
        if (config.temperature, config.batch_size, config.epochs) == CONDITIONS[0]:
            features["pixels"] = F.avg_pool2d(pixels[:, :1].float(), 2).flatten(1)
            features |= _layers(model, pixels, "untrained")
        last = cibr.fit(model, train, validation, config).iloc[-1]
        features |= _layers(model, pixels, "trained")
    common = settings | {"validation_recall@1": last["image_to_text_label_recall@1"]}
    common["mi_lower_bound_nats"] = last["mi_lower_bound_nats"]
    factors = factor_codes(train.factors)
    factors.pop("category", None)
    rows = []
    for (layer, z), factor, probe in itertools.product(features.items(), factors, PROBES):
        with threadpool_limits(1):  # threads cost more than they save on matrices this small
            nats = probe_nats(z, factors[factor], train.labels % 2 == 0, PROBES[probe])
        rows.append(common | {"layer": layer, "factor": factor, "probe": probe} | nats)
    about = provenance()
    versions = dict(commit=about["commit"], torch=about["versions"]["torch"])
    return pd.DataFrame(rows).round(4).assign(**versions)


def main() -> None:
    """Executes the runs that the table lacks."""
    train, validation = (cibr.load_pairs("glyphs", split) for split in ("train", "validation"))
    for seed, (temperature, batch_size, epochs) in itertools.product(SEEDS, CONDITIONS):
        settings = dict(temperature=temperature, batch_size=batch_size, seed=seed, epochs=epochs)
        table = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=list(settings))
        if not (table[list(settings)] == pd.Series(settings)).all(axis=1).any():
            table = pd.concat([table, probe_run(train, validation, **settings)])
            write_atomically(TABLE, lambda part, table=table: table.to_csv(part, index=False))
            print(settings, flush=True)


if __name__ == "__main__":
    main()
