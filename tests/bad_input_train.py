"""Bad input to training: configurations, data sets and output folders."""

import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import noise_pairs
from small_runs import PAIRS, train, write_folder
from transformers import TrainingArguments

from cibr.train import CIBRTrainer, RunConfig, build_model, configure, fit, load_splits

BAD = {  # values of each setting
    "beta": [-0.1, math.nan, 1e5, "0.1", True],
    "epochs": [-1, 2.0, np.float32(2)],
    "batch_size": [-1, 1, True],
    "learning_rate": [-1e-3, math.inf],
    "temperature": [-1.0, 0.009, 1e4],
    "micro_batch_size": [-1],
    "weight_decay": [-2.0, -0.5, 1e4],
    "dropout": [-2.0, -0.5, 1.0],
    "seed": [-1, 2**32],
    "cca_ridges": [(0.0, 1.0), (1.0, -1.0), (1.0, 2.0, 3.0), (math.inf, 1.0), 3.0],
    "learn_temperature": [1],
    "loss_options": [3],
    "output_dir": [5],
}
SETTINGS = [({name: value}, f"^{name} is ") for name, values in BAD.items() for value in values]
SETTINGS += [
    (dict(betta=1.0), "'betta', did you mean 'beta'"),
    (dict(preset="few-photo"), "'few-photo', did you mean 'few-photos'"),
    (dict(preset="many-pairs"), "'many-pairs' is gone: use 'many-photos'"),
    (dict(penalty="vfm"), "'vfm', did you mean 'vmf'"),
    (dict(loss_options={"kapa_b": 1.0}), "'kapa_b', did you mean 'kappa_b'"),
    (dict(penalty="mine", loss_options={"kappa_b": 1.0}), "'kappa_b'"),
    (dict(kappa_e=8192.0), "the setting kappa_e is gone: give loss_options"),
    (dict(dataset="no/such/folder"), "no data set 'no/such/folder'"),
    (dict(cca_start=True), "cca_start .* set model to 'frozen'"),
    (dict(towers="clip-tiny"), "set model to .frozen."),
]


def configuring(**options):
    return lambda: configure(**options)


def output_within_the_data(folder):
    data = write_folder(folder / "mine", train=9)
    configure(dataset=data, output_dir=f"{data}/runs/one")


def too_few_to_hold_out(folder):
    load_splits(configure(dataset=Path(write_folder(folder / "mine", train=1, test=1))))


def training(pairs=PAIRS, world_size=1, **options):
    def call(folder):
        # A batch that is larger than the set is warned of.
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
            patch.setattr(TrainingArguments, "world_size", world_size)
            train(folder / "out", pairs, **options)

    return call


def fitting(pairs, config):
    return lambda: fit(build_model(configure(), PAIRS), pairs, None, config)


def with_fsdp(folder):
    class Sharded(CIBRTrainer):
        def create_accelerator_and_postprocess(self):
            super().create_accelerator_and_postprocess()
            self.is_fsdp_enabled = True

    train(folder / "out", trainer=Sharded)


def output_under_a_file(folder):
    (folder / "out").write_text("")
    train(folder / "out" / "x")


def output_with_other_files(folder):
    (folder / "thesis.tex").write_text("")
    train(folder)


def damaged_run(record, history="epoch,step\n1,2\n"):
    def call(folder):
        (folder / "run.json").write_text(record)
        (folder / "history.csv").write_text(history)
        train(folder)

    return call


SAME = replace(noise_pairs(9), captions=[["a red cat"]] * 9)
TWO = PAIRS.subset([0, 1])
RUNS = [
    ("too few to hold out", too_few_to_hold_out, "all 1 images of mine"),
    ("output in the data", output_within_the_data, "output_dir .* within the data set's folder"),
    ("output under a file", output_under_a_file, "output_dir .* cannot be written"),
    ("other files", output_with_other_files, "output_dir .*'thesis.tex'"),
    ("a record that is a list", damaged_run("[]", ""), "files that no run made, such as"),
    ("deep JSON", damaged_run("[" * 100_000), "files that no run made, such as"),
    ("no model", lambda: fit(None, PAIRS, None, configure()), "build_model"),
    ("no pairs", fitting(None, configure()), "on NoneType: use .* load_splits"),
    ("no configuration", fitting(PAIRS, None), "configure"),
    ("no defaults", fitting(PAIRS, RunConfig()), "configure"),
    ("FSDP", with_fsdp, "without FSDP"),
    ("one pair", training(PAIRS.subset([0])), "the 1 pairs of .*'noise' all have"),
    ("one caption", training(SAME), "the 9 pairs of .*'noise' all have .*'a red cat'"),
    ("few pairs", training(TWO, world_size=3), "3 processes .* batch of 2 pairs .* batch_size"),
    ("an odd batch", training(batch_size=5, world_size=2), "2 processes .* batch of 5 pairs"),
]
for name in ("gradient_accumulation_steps", "num_train_epochs", "max_steps", "seed"):
    call = training(training_arguments={name: 2})
    RUNS.append((f"argument {name}", call, f"training_arguments has '{name}'"))
for name, value in (("optim", "sgd"), ("lr_scheduler_type", "linear"), ("warm_up", 3)):
    call = training(training_arguments={name: value})
    RUNS.append((f"argument {name}", call, f"'{name}', .* does not use: give .*adam_beta1"))
call = training(training_arguments={"max_grad_norm": -1.0})
RUNS.append(("a negative norm", call, "max_grad_norm is -1"))
CASES = [(f"train: {given}", configuring(**given), ValueError, word) for given, word in SETTINGS]
CASES += [(f"train: {name}", call, ValueError, words) for name, call, words in RUNS]
unknown = "'froze', did you mean 'frozen'"
CASES.append(("train: model froze", configuring(model="froze"), FileNotFoundError, unknown))
