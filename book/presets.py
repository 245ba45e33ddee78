"""Choose the presets of `cibr.configure` on validation recall: `python book/presets.py flickr8k frozen`.

From the present preset, one setting at a time is varied at beta = 0 and the run with the best validation recall
(mean of recall@1 in both directions) keeps its value. The test split is not read. Every trial is a row of
data/results/presets.csv; a rerun does only what is missing there.
"""

import argparse
import json
from dataclasses import replace

import pandas as pd

import cibr
from cibr.paths import project_root
from cibr.train.config import RunConfig

RESULTS = project_root() / "data" / "results" / "presets.csv"
SETTINGS = (
    "batch_size",
    "dropout",
    "epochs",
    "learning_rate",
    "temperature",
    "weight_decay",
)
VALUES = {
    ("glyphs", "tiny"): {
        "temperature": (0.08, 0.12, 0.15),
        "learning_rate": (2e-3, 3e-3, 5e-3),
        "weight_decay": (0.01, 0.1),
        "dropout": (0.0, 0.1),
    },
    ("flickr8k", "frozen"): {
        "temperature": (0.02, 0.03, 0.05),
        "learning_rate": (1e-3, 2e-3, 4e-3),
        "dropout": (0.3, 0.4, 0.5),
        "weight_decay": (0.1, 1.0),
        "batch_size": (256, 512, 1024),
        "epochs": (20, 30),
    },
}


def score(config: RunConfig, splits: tuple) -> float:
    """Validation recall of one trial in per cent, from the table or from a run that is added to it."""
    key = {name: getattr(config, name) for name in SETTINGS}
    trial = {
        "dataset": config.dataset,
        "model": config.model,
        "settings": json.dumps(key, sort_keys=True),
    }
    done = (
        pd.read_csv(RESULTS)
        if RESULTS.exists()
        else pd.DataFrame(columns=[*trial, "validation_recall@1"])
    )
    same = (done[list(trial)] == pd.Series(trial)).all(axis=1)
    if not same.any():
        history = cibr.fit(
            cibr.build_model(config, splits[0]), splits[0], splits[1], config
        )
        last = history.iloc[-1]
        recall = 50 * (last["image_to_text_recall@1"] + last["text_to_image_recall@1"])
        found = {
            "validation_recall@1": round(recall, 2),
            "seconds": round(last["seconds"], 1),
        }
        row = pd.DataFrame([trial | found])
        done = pd.concat([done, row]) if len(done) else row
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        done.to_csv(RESULTS, index=False)
        return recall
    return float(done.loc[same, "validation_recall@1"].iloc[0])


def main() -> None:
    """Search one setting at a time and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset")
    parser.add_argument("model")
    given = parser.parse_args()
    best = cibr.configure(
        dataset=given.dataset,
        model=given.model,
        beta=0.0,
        output_dir=str(project_root() / "runs" / "presets"),
    )
    splits = cibr.load_splits(best)
    best_score = score(best, splits)
    for name, values in VALUES[given.dataset, given.model].items():
        for value in values:
            trial = replace(best, **{name: value})
            trial_score = score(trial, splits)
            print(
                f"{name} = {value:g}: {trial_score:.1f} % (best so far {best_score:.1f} %)",
                flush=True,
            )
            if trial_score > best_score:
                best, best_score = trial, trial_score
    chosen = {name: getattr(best, name) for name in VALUES[given.dataset, given.model]}
    print(
        f"chosen for {given.dataset} {given.model}: {chosen}, validation recall@1 {best_score:.1f} %"
    )


if __name__ == "__main__":
    main()
