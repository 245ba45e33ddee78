"""Random search over the settings of heads on frozen towers, by recall on held-out pairs."""

import random
import sys
from dataclasses import replace
from pathlib import Path

from cibr.data import Pairs
from cibr.metrics import retrieval_recalls
from cibr.models.features import embed_pairs, prepare
from cibr.train.config import RunConfig, build_model
from cibr.train.trainer import fit

_GRID = {
    "learning_rate": (1e-3, 2e-3, 4e-3, 8e-3),
    "epochs": (40, 80, 160, 320),
    "temperature": (0.03, 0.05, 0.08, 0.12),
    "weight_decay": (0.1, 0.3, 1.0, 3.0),
    "dropout": (0.4, 0.5, 0.6, 0.7),
    "batch_size": (128, 256, 512, 1024),
    "cca_ridges": tuple((image, text) for image in (3.0, 10.0, 30.0) for text in (0.1, 0.3, 1.0)),
}


def tuned(config: RunConfig, pairs: Pairs, n_trials: int) -> RunConfig:
    """The best settings of a random search, for `cibr train --trials`.

    Each trial trains on nine tenths of the pairs, and recalls the rest; the first has the given
    settings. Trials are runs in `trials/` of the output folder: a killed search resumes.

    Args:
        config: of a run of heads over frozen towers.
        pairs: that may be seen; none of them counts as held out afterwards.
        n_trials: settings to try, with the seed of the run.

    Returns:
        The configuration with the highest mean recall over both directions.

    Raises:
        ValueError: too few pairs, as `Pairs.hold_out`.
    """
    train, held_out = pairs.hold_out()
    drawn = random.Random(config.seed)
    best, highest = config, -1.0
    for i in range(n_trials):
        point = {name: drawn.choice(values) for name, values in _GRID.items()} if i else {}
        trial = replace(config, **point, output_dir=str(Path(config.output_dir, "trials", str(i))))
        model = build_model(trial, train)
        fit(model, train, None, trial)
        embedded = embed_pairs(model, prepare(model, held_out))
        recalls = retrieval_recalls(*embedded, *held_out.retrieval_targets())
        mean = sum(recalls.values()) / len(recalls)
        print(f"trial {i + 1} of {n_trials}: mean recall {100 * mean:.1f} %", file=sys.stderr)
        if mean > highest:
            best, highest = replace(trial, output_dir=config.output_dir), mean
    return best
