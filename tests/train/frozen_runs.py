"""Numbers of small runs as they were when training was a subclass of `transformers.Trainer`.

`PYTHONPATH=tests:tests/train python tests/train/frozen_runs.py` writes `frozen_runs.json`. It was
written by the code of then; the loop of today must give the same. They are not digests of bytes,
since processors round differently: the models are in float64, and nine digits are compared.
"""

import json
import tempfile
from pathlib import Path

import torch
from processes import run_together
from small_models import save_model
from small_runs import HELD_OUT, PAIRS, settings
from twin import CASES, FIXED, model_of, settings_of

from cibr import DualEncoder, fit

FILE = Path(__file__).with_suffix(".json")
COLUMNS = ("loss", "clip_loss", "penalty_loss", "beta", "grad_norm", "learning_rate", "temperature")


def summary(model, history):
    """Two numbers that any change of a weight changes, and the columns of the history."""
    weights = torch.cat([p.detach().double().flatten() for p in model.parameters()])
    places = torch.arange(len(weights), dtype=torch.double)
    recalls = [name for name in history if "_recall@" in name]
    columns = {name: history[name].tolist() for name in (*COLUMNS, *recalls)}
    projections = {"norm": weights.norm().item(), "projection": (weights @ places.cos()).item()}
    return projections | columns


def run(case, folder):
    """The numbers of a run of a case on one process."""
    config = settings_of(case, folder)
    model = model_of(config)
    return summary(model, fit(model, PAIRS, HELD_OUT, config))


def run_hub(folder):
    """The numbers of a run of a dual encoder of transformers, without dropout."""
    save_model(Path(folder) / "clip")
    model = DualEncoder.from_pretrained(Path(folder) / "clip").double()
    model.is_pretrained = False  # then, the weight of a penalty rose in all runs
    config = settings(Path(folder) / "run", model="some/clip", seed=3, loss_options=FIXED)
    model.set_temperature(config.temperature, config.learn_temperature)
    return summary(model, fit(model, PAIRS, HELD_OUT, config))


def run_shared(folder, rank):
    """Writes the numbers of a process of a run on several."""
    numbers = run("vmf", folder / "run")
    (folder / f"{rank}.json").write_text(json.dumps(numbers))


def run_two(folder):
    """The numbers of both processes of a run on two."""
    folder = Path(folder)
    run_together(2, run_shared, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


if __name__ == "__main__":
    runs = {case: run(case, tempfile.mkdtemp()) for case in CASES}
    runs["a dual encoder of transformers"] = run_hub(tempfile.mkdtemp())
    runs["two processes"] = run_two(tempfile.mkdtemp())
    FILE.write_text(json.dumps(runs, indent=1) + "\n")
