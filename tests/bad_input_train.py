"""Bad input to training: configurations, data sets and output folders."""

import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from helpers import TEXTS, noise_pairs, picture

from cibr.data import Pairs
from cibr.train import check_parameters, configure, fit, load_splits
from cibr.train.loop import _precision, _rows_a_process
from cibr.train.sampler import epoch_rows

sys.path.insert(0, str(Path(__file__).parent / "train"))

from small_runs import PAIRS, small_model, write_folder

PARAMETERS = {
    "a mistyped parameter": (
        dict(betta=1.0),
        "unknown parameter 'betta', did you mean 'beta'.*Known: dataset, model",
    ),
    "an unknown parameter": (dict(zzz=1), r"unknown parameter 'zzz'\. Known"),
    "a retired parameter": (dict(views=True), "unknown parameter 'views'"),
    "a mistyped data set": (dict(dataset="glyph"), "no data set 'glyph', did you mean 'glyphs'"),
    "a mistyped model": (dict(model="froze"), "'froze', did you mean 'frozen'"),
    "an empty model": (dict(model=""), "model ''"),
    "a mistyped penalty": (dict(penalty="vfm"), "unknown penalty 'vfm', did you mean 'vmf'.*Known: vmf, crossfit"),
    "an unknown contrastive loss": (dict(contrastive="clap"), "unknown contrastive 'clap', did you mean 'clip'"),
    "beta below 0": (dict(beta=-0.1), "beta is -0.1: the penalty's weight is 0"),
    "beta nan": (dict(beta=math.nan), "beta is nan"),
    "beta without bound": (dict(beta=1e9), "beta is 1000000000.0: the penalty's weight is 0 .* to 10,000"),
    "a batch of one": (dict(batch_size=1), "batch_size is 1: a contrast needs two pairs"),
    "epochs below 0": (dict(epochs=-1), "epochs is -1"),
    "a learning rate below 0": (dict(learning_rate=-1e-3), "learning_rate is -0.001: give a positive number"),
    "a temperature too low": (dict(temperature=0.001), "temperature is 0.001: CLIP keeps it at 0.01"),
    "dropout of all": (dict(dropout=1.0), "dropout is 1.0: a probability below 1"),
    "dropout below 0": (dict(dropout=-0.5), "dropout is -0.5"),
    "a weight decay below 0": (dict(weight_decay=-2.0), "weight_decay is -2.0"),
    "a micro batch below 0": (dict(micro_batch_size=-1), "micro_batch_size is -1"),
    "a seed below 0": (dict(seed=-1), "seed is -1"),
    "no concentration": (dict(kappa_b=0.0), "kappa_b is 0.0: a concentration"),
    "another precision": (dict(mixed_precision="fp8"), "unknown mixed_precision 'fp8'.*Known: no, bf16"),
    "a mistyped corruption": (
        dict(corruption={"fractoin": 0.5}),
        "unknown corruption 'fractoin', did you mean 'fraction'",
    ),
    "a corruption out of range": (dict(corruption={"fraction": 2.0}), "fraction is 2.0"),
    "a corruption that is none": (
        dict(corruption="half"),
        "corruption is 'half', of type str: it is of type dict",
    ),
    "an unknown policy": (dict(on_non_finite="ignore"), "unknown on_non_finite 'ignore'.*Known: stop, skip"),
    "checkpoints below 0": (dict(checkpoint_every=-1), "checkpoint_every is -1: a number of steps, or 0"),
    "no critic step": (dict(critic_steps=0), "critic_steps is 0: one to five are usual"),
    "an unknown on_error": (dict(on_error="ignore"), "unknown on_error 'ignore'.*Known: raise, skip"),
    "a limit without skipping": (dict(max_skipped=3), "needs on_error='skip'"),
    "epochs as a float": (dict(epochs=2.0), "epochs is 2.0, of type float: it is of type int"),
    "a batch size as a truth": (dict(batch_size=True), "batch_size is True, of type bool: it is of type int"),
    "a truth as a number": (dict(learn_temperature=1), "learn_temperature is 1, of type int: it is of type bool"),
    "beta as a string": (dict(beta="0.1"), "beta is '0.1', of type str: it is of type float"),
    "a penalty of nothing": (dict(penalty=None), "penalty is None"),
    "consistency without groups": (
        dict(penalty="consistency"),
        "'consistency' compares rows of one group: set group",
    ),
    "a share without groups": (dict(group_share=0.5), "set group_size to 2 or more too"),
}


def configuring(options):
    return lambda: configure(**options)


def start(folder, pairs=PAIRS, **options):
    """Begins a small run, which is refused before it trains."""
    with warnings.catch_warnings(action="ignore"):
        config = configure(**(dict(output_dir=str(folder / "out"), epochs=1, batch_size=8) | options))
        fit(small_model(config), pairs, None, config)


def distinct(n):
    """Pairs of which no two match, each image with one caption."""
    return replace(noise_pairs(n), captions=[[f"image {i}"] for i in range(n)])


def injected(*cells, **namespace):
    return check_parameters(dict(beta=0.1, In=["", *cells]) | namespace, "beta seed")


def too_few_to_hold_out(folder):
    load_splits(configure(dataset=str(write_folder(folder / "mine", train=9, test=1))))


def output_within_the_data(folder):
    data = str(write_folder(folder / "mine", train=9))
    configure(dataset=data, output_dir=f"{data}/runs/one")


def output_under_a_file(folder):
    (folder / "out").write_text("")
    start(folder, output_dir=str(folder / "out" / "x"))


def output_with_foreign_files(folder):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("")
    start(folder)


def half_precision():
    class Half:
        mixed_precision = "fp16"

    _precision(configure(), Half())


def no_large_group():
    pairs = replace(noise_pairs(20, n_captions=3), labels=torch.tensor([0, 0, *range(1, 19)]))
    epoch_rows(pairs, 3, 0.5, seed=0, epoch=0)


CASES = [
    (f"train: {name}", configuring(options), ValueError, message)
    for name, (options, message) in PARAMETERS.items()
]
CASES += [
    (
        "train: an injected name that is no parameter",
        lambda: injected("# Parameters\nseed = 3\nbetta = 0.3\n", seed=3),
        ValueError,
        "unknown parameter 'betta', did you mean 'beta'.*Known: beta, seed",
    ),
    ("train: a parameter without a value", lambda: injected(), ValueError, "parameter 'seed' is not set"),
    (
        "train: too few pairs to hold out any",
        too_few_to_hold_out,
        ValueError,
        "mine has 9 pairs and no validation split: it takes ten",
    ),
    ("train: output within the data", output_within_the_data, ValueError, "is within the data set's folder"),
    ("train: output under a file", output_under_a_file, ValueError, "out/x' cannot be written: .*choose another"),
    (
        "train: output with foreign files",
        output_with_foreign_files,
        ValueError,
        "has files that are no run's, such as 'thesis.tex': choose another",
    ),
    (
        "train: one pair",
        lambda folder: start(folder, PAIRS.subset([0])),
        ValueError,
        "train of noise has 1 pair: a contrast needs two at least",
    ),
    (
        "train: one caption for all",
        lambda folder: start(folder, Pairs("few", "train", [[TEXTS[0]]] * 9, list("abcdefghi"), picture)),
        ValueError,
        "all pairs of train of few match by caption, label or group, such as 'a red cat'",
    ),
    (
        "train: groups of pairs that have none",
        lambda folder: start(folder, distinct(24), group_size=2),
        ValueError,
        "group_size=2 needs images of one label, or captions of one image, and train of noise has neither",
    ),
    ("train: no group so large", no_large_group, ValueError, "train of noise has no group of 3 images"),
    (
        "train: more processes than pairs",
        lambda: _rows_a_process(8, 2, 3),
        ValueError,
        "a batch of 2 pairs cannot be shared by 3 processes",
    ),
    (
        "train: a batch that processes cannot share",
        lambda: _rows_a_process(5, 16, 2),
        ValueError,
        "batch_size 5 cannot be shared equally by 2 processes.*multiple such as 4",
    ),
    (
        "train: gradients that need scaling",
        half_precision,
        ValueError,
        "mixed_precision 'fp16': it is 'no' or 'bf16'",
    ),
]
