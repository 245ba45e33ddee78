"""Bad input to training: configurations, data sets and output folders."""

import math
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from cibr.train.sampler import epoch_rows
from helpers import TEXTS, noise_pairs, picture

from cibr.data import Pairs
from cibr.train import configure, fit, load_splits
from cibr.train.loop import _rows_a_process

sys.path.insert(0, str(Path(__file__).parent / "train"))

from small_runs import PAIRS, small_model, write_folder

OUT_OF_RANGE = dict(
    beta=(-0.1, math.nan, 1e9), batch_size=(1,), epochs=(-1,), learning_rate=(-1e-3,)
)
OUT_OF_RANGE |= dict(
    temperature=(0.001,), dropout=(1.0, -0.5), weight_decay=(-2.0,), micro_batch_size=(-1,)
)
OUT_OF_RANGE |= dict(
    cca_ridge_image=(0.0,), cca_ridge_text=(-1.0,), feature_noise=(-0.1,), ema_decay=(1.0,)
)
OUT_OF_RANGE |= dict(warm_up=(1.0,), image_tower_rate=(-0.1,), text_tower_rate=(math.inf,))
OUT_OF_RANGE |= dict(interpolation=(1.0,), crop_scale=(0.0, 1.1), validate_every=(0,))
OUT_OF_RANGE |= dict(
    seed=(-1,),
    kappa_b=(0.0,),
    text_weight=(1.5,),
    checkpoint_every=(-1,),
    validate_every=(0,),
    critic_steps=(0,),
)
OF_WRONG_TYPE = dict(epochs=2.0, batch_size=True, learn_temperature=1, beta="0.1", penalty=None)
UNKNOWN = dict(penalty=("vfm", "vmf"), contrastive=("clap", "clip"))
OTHER_PARAMETERS = [
    (dict(betta=1.0), "unknown parameter 'betta', did you mean 'beta'.*Known: dataset, model"),
    (dict(zzz=1), r"unknown parameter 'zzz'\. Known"),
    (dict(mixed_precision="fp8"), "unknown mixed_precision 'fp8'.*Known: no, bf16"),
    (dict(dataset="glyph"), "no data set 'glyph', did you mean 'glyphs'"),
    (dict(model="froze"), "'froze', did you mean 'frozen'"),
    (dict(model=""), "model ''"),
    (dict(max_skipped=-3), "max_skipped is -3"),
    (dict(penalty="consistency"), "for rows in groups: set group_size to 2"),
    (
        dict(penalty="anchor"),
        "penalty 'anchor' reads features of frozen towers: set model to 'frozen'",
    ),
    (dict(cca_start=True), "cca_start reads features of frozen towers"),
    (dict(feature_noise=0.1), "feature_noise reads features of frozen towers"),
    (
        dict(model="frozen", crop_scale=0.9),
        "crop_scale is for towers that train, not those of model 'frozen'",
    ),
    (
        dict(model="frozen", text_tower_rate=0.0),
        "text_tower_rate is for towers that train.*leave it at 1",
    ),
    (dict(group_share=0.5), "group_share .* set group_size to 2 or more"),
]


def parameters():
    """Options of `configure` with the message that refuses them."""
    for name, values in OUT_OF_RANGE.items():
        yield from (({name: value}, f"{name} is {value}: ") for value in values)
    for name, value in OF_WRONG_TYPE.items():
        wanted = "it must be of type (str|int|bool|float|dict)"
        yield {name: value}, f"{name} is {value!r}, of type {type(value).__name__}: {wanted}"
    for name, (value, meant) in UNKNOWN.items():
        yield {name: value}, f"unknown {name} {value!r}, did you mean {meant!r}.*Known: "
    yield from OTHER_PARAMETERS


def configuring(options):
    return lambda: configure(**options)


def start(folder, pairs=PAIRS, **options):
    """Begins a small run, which is refused before it trains."""
    with warnings.catch_warnings(action="ignore"):
        config = configure(
            **(dict(output_dir=str(folder / "out"), epochs=1, batch_size=8) | options)
        )
        fit(small_model(config), pairs, None, config)


def distinct(n):
    """Pairs of which no two match, each image with one caption."""
    return replace(noise_pairs(n), captions=[[f"image {i}"] for i in range(n)])


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


def no_large_group():
    pairs = replace(noise_pairs(20, n_captions=3), labels=torch.tensor([0, 0, *range(1, 19)]))
    epoch_rows(pairs, 3, 0.5, seed=0, epoch=0)


def case(name, message, call):
    return f"train: {name}", call, ValueError, message


CASES = [case(f"{options}", message, configuring(options)) for options, message in parameters()]
CASES += [
    case("too few pairs to hold out any", "9 pairs and no validation split: it takes ten", too_few_to_hold_out),
    case("output within the data", "is within the data set's folder", output_within_the_data),
    case("output under a file", "out/x' cannot be written: .*choose another", output_under_a_file),
    case("foreign files", "of no run, such as 'thesis.tex': choose another", output_with_foreign_files),
    case("one pair", "all 1 pairs of .*'noise', such as .* match", lambda f: start(f, PAIRS.subset([0]))),
    case("one caption for all", "all 9 pairs of .*'few', such as 'a red cat', match by caption",
         lambda folder: start(folder, Pairs("few", "train", [[TEXTS[0]]] * 9, list("abcdefghi"), picture))),
    case("groups of pairs that have none", "'noise' has neither images of one label .*: leave group_size at 1",
         lambda folder: start(folder, distinct(24), group_size=2)),
    case("no group so large", "noise has no group of 3 images", no_large_group),
    case("more processes than pairs", "batch of 2 pairs cannot be shared", lambda: _rows_a_process(8, 2, 3)),
    case("a batch that processes cannot share", "batch of 5 pairs cannot be shared equally by 2.*multiple",
         lambda: _rows_a_process(5, 16, 2)),
]  # fmt: skip
