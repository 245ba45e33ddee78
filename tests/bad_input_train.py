"""Bad input to training: configurations, data sets and output folders."""

import math
import warnings
from dataclasses import replace
from types import SimpleNamespace

from helpers import noise_pairs
from small_runs import PAIRS, train, write_folder

from cibr.train import configure, load_splits

OUT_OF_RANGE = [
    dict(beta=[-0.1, math.nan, 1e5], kappa_e=[0.0, 1e7], epochs=[-1], batch_size=[-1, 1]),
    dict(learning_rate=[-1e-3, math.inf], temperature=[-1.0, 0.009, 1e4], micro_batch_size=[-1]),
    dict(weight_decay=[-2.0, -0.5, 1e4], dropout=[-2.0, -0.5, 1.0], seed=[-1, 2**32]),
    dict(cca_ridges=[(0.0, 1.0), (1.0, -1.0)], feature_noise=[-0.1, 101.0]),
    dict(crop_scale=[0.0, 1.1], validate_every=[0], max_skipped=[-3]),
]
OF_WRONG_TYPE = dict(epochs=2.0, batch_size=True, learn_temperature=1, beta="0.1", penalty=None)
OF_WRONG_TYPE |= dict(penalty_options=3, cca_ridges=(1.0, 2.0, 3.0), output_dir=5)
OF_WRONG_TYPE |= dict(kappa_e=math.nan, learning_rate=math.inf)
SETTINGS = []
for name, values in (item for row in OUT_OF_RANGE for item in row.items()):
    SETTINGS += [({name: value}, f"{name} is ") for value in values]
SETTINGS += [({name: value}, f"{name} is .*should ") for name, value in OF_WRONG_TYPE.items()]
SETTINGS += [
    (dict(betta=1.0), "unknown parameter 'betta', did you mean 'beta'.*Known: dataset, model"),
    (dict(cca_ridges=(math.inf, 1.0)), "cca_ridges is inf: .*finite"),
    (dict(zzz=1), r"unknown parameter 'zzz'\. Known"),
    (dict(preset="few-pair"), "unknown preset 'few-pair', did you mean 'few-pairs'.*many-pairs"),
    (dict(penalty="vfm"), "unknown penalty 'vfm', did you mean 'vmf'.*Known: "),
    (dict(contrastive="clap"), "unknown contrastive loss 'clap', did you mean 'clip'.*Known: "),
    (dict(penalty_options={"kapa_b": 1.0}), "unknown option .*'kapa_b', did you mean 'kappa_b'"),
    (dict(penalty="mine", penalty_options={"kappa_b": 1.0}), "unknown option .*'kappa_b'"),
    (dict(dataset="glyph"), "no data set 'glyph', did you mean 'glyphs'"),
    (dict(penalty="anchor"), "penalty 'anchor' reads features of frozen towers: set model to"),
    (dict(cca_start=True), "cca_start reads features of frozen towers: set model to 'frozen'"),
    (dict(feature_noise=0.1), "feature_noise reads features of frozen towers: set model to"),
    (dict(model="frozen", crop_scale=0.9), "crop_scale needs a tower that trains: leave it at 1"),
]


def configuring(options):
    return lambda: configure(**options)


def output_within_the_data(folder):
    data = write_folder(folder / "mine", train=9)
    configure(dataset=data, output_dir=f"{data}/runs/one")


def too_few_to_hold_out(folder):
    load_splits(configure(dataset=write_folder(folder / "mine", train=9, test=1)))


def training(pairs=PAIRS, precision="no", n_processes=1, **options):
    accelerator = SimpleNamespace(mixed_precision=precision, num_processes=n_processes)

    def call(folder):
        with warnings.catch_warnings(action="ignore"):  # of a batch that is larger than the set
            train(folder / "out", pairs, additions={"accelerator": accelerator}, **options)

    return call


def output_under_a_file(folder):
    (folder / "out").write_text("")
    train(folder / "out" / "x")


def output_with_other_files(folder):
    (folder / "thesis.tex").write_text("")
    train(folder)


SAME = replace(noise_pairs(9), captions=[["a red cat"]] * 9)
TWO = PAIRS.subset([0, 1])
RUNS = [
    (
        "too few to hold out",
        too_few_to_hold_out,
        "9 pairs in 9 groups.*: give.*ten pairs",
    ),
    ("output in the data", output_within_the_data, "is within the data set's folder: choose one"),
    ("output under a file", output_under_a_file, "out/x' cannot be written: .*choose another"),
    ("other files", output_with_other_files, "no run's, such as 'thesis.tex': choose another"),
    ("one pair", training(PAIRS.subset([0])), "all 1 pairs of .*'noise', .* match"),
    ("one caption", training(SAME), "all 9 pairs of .*'noise', 'a red cat', match by caption"),
    (
        "half precision",
        training(precision="fp16"),
        "'fp16' is not offered: give --mixed_precision bf16 or no",
    ),
    ("few pairs", training(TWO, n_processes=3), "3 processes cannot share a batch of 2 pairs"),
    ("an odd batch", training(batch_size=5, n_processes=2), "2 .* share a batch of 5.*multiple"),
]
CASES = [(f"train: {given}", configuring(given), ValueError, words) for given, words in SETTINGS]
CASES += [(f"train: {name}", call, ValueError, words) for name, call, words in RUNS]
for name, words in (("froze", "'froze', did you mean 'frozen'"), ("", "model ''")):
    CASES.append((f"train: model {name}", configuring({"model": name}), FileNotFoundError, words))
