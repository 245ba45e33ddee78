"""Bad input to training: configurations, data sets and output folders."""

import math

import pytest
from accelerate import Accelerator
from small_runs import PAIRS, train, write_folder

from cibr.train import configure, load_splits

BAD = {  # a value of each setting
    "beta": math.nan,
    "epochs": 2.0,
    "batch_size": 1,
    "learning_rate": math.inf,
    "temperature": 0.009,
    "micro_batch_size": 0,
    "weight_decay": -0.5,
    "dropout": 1.0,
    "seed": 2**32,
    "cca_ridge_image": 0.0,
    "cca_ridge_text": "1",
    "cca_weight": 0.0,
    "train_stages": -1,
    "output_dir": "",
    "learn_temperature": 1,
    "loss_options": 3,
}
SETTINGS = [({name: value}, f"^{name} is ") for name, value in BAD.items()]
SETTINGS += [
    (dict(betta=1.0), "'betta', did you mean 'beta'"),
    (dict(preset="few-photo"), "'few-photo', did you mean 'few-photos'"),
    (dict(loss_options={"kapa_b": 1.0}), "'kapa_b', did you mean 'kappa_b'"),
    (dict(towers="clip-tiny", model="names"), "set model to .frozen."),
    (dict(train_stages=1, model="frozen"), "train_stages .* set model to .names."),
    (dict(cca=True), "cca needs the features of frozen towers: set model to .names. or .frozen."),
    (dict(cca=True, model="names", train_stages=1), "cca needs the features of frozen towers"),
]


def configuring(**options):
    return lambda: configure(**options)


def too_few_to_hold_out(folder):
    load_splits(configure(dataset=write_folder(folder / "mine", train=1, test=1)))


def training(pairs=PAIRS, n_processes=1, **options):
    def call(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Accelerator, "num_processes", n_processes)
            train(folder / "out", pairs, **options)

    return call


RUNS = [
    ("too few to hold out", too_few_to_hold_out, "all 1 images of mine"),
    ("an odd batch", training(batch_size=5, n_processes=2), "2 processes .* 5 pairs: change batch"),
    ("one pair", training(PAIRS.subset([0])), "n >= 2"),
    ("tracker", training(log_with="tensorbord"), "Unsupported logging capability: tensorbord"),
]
CASES = [(f"train: {given}", configuring(**given), ValueError, word) for given, word in SETTINGS]
CASES += [(f"train: {name}", call, ValueError, words) for name, call, words in RUNS]
unknown = "'froze', did you mean 'frozen'"
CASES.append(("train: model froze", configuring(model="froze"), FileNotFoundError, unknown))
