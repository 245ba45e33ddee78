"""The command `cibr` (or `python -m cibr.cli`): train a model, evaluate it on benchmarks, search a
folder of images.

What is wrong with the input is reported in one line on stderr, with exit code 2 for arguments that
do not parse and 1 otherwise.
"""

import argparse
import importlib
import json
import os
import re
import runpy
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import cibr


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Args:
        argv: the arguments, by default those of the process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = _parser(argv).parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
            for name in arguments.plugin:
                _import_plugin(name)
            arguments.run(arguments)
    except KeyboardInterrupt:
        _say("stopped by Ctrl-C")
        return 130
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        _say(str(error))
        return 1
    return 0


def _import_plugin(name: str) -> None:
    """Runs the file of this name in the current folder, from which nothing else is imported, or
    else imports an installed module.
    """
    if os.path.isfile(f"{name}.py"):
        runpy.run_path(f"{name}.py", run_name=name)
    else:
        importlib.import_module(name)


def _say(message: str) -> None:
    print(f"cibr: {' '.join(message.split())}", file=sys.stderr)


def _parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The argument parser; settings of `train`, which take long to import, are of that command."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--plugin", action="append", default=[], help="a module to import first")
    with_model = argparse.ArgumentParser(add_help=False, parents=[common])
    with_model.add_argument(
        "model", help="names, a shipped model such as clip-tiny, a folder or a hub id"
    )
    with_model.add_argument("--device", help="by default a GPU if available")

    parser = argparse.ArgumentParser("cibr", epilog="cibr COMMAND --help says more")
    parser.add_argument("--version", action="version", version=f"cibr {cibr.__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | evaluate | search")

    train = commands.add_parser("train", help="train a model, CLIP or CIBR", parents=[common])
    train.add_argument("--copy-towers", action="store_true", help="save the frozen towers, too")
    if argv[:1] == ["train"]:
        _add_settings(train)
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="measure a model", parents=[with_model])
    on = evaluate.add_mutually_exclusive_group()
    on.add_argument("--suite", default="characters", help="or photos, paper or your own")
    on.add_argument("--data", metavar="NAME_OR_FOLDER", help="one data set instead of a suite")
    evaluate.add_argument("--compare-with", metavar="MODEL", help="a model to subtract")
    evaluate.add_argument("--output-dir", type=Path, help="a folder for scores")
    evaluate.set_defaults(run=_evaluate)

    search = commands.add_parser("search", help="rank images by queries", parents=[with_model])
    search.add_argument("folder", type=Path, help="a folder of images, searched recursively")
    search.add_argument("query", nargs="+", help="texts that say what the images should show")
    search.add_argument("--top", type=int, default=5, help="number of images to print (5)")
    search.set_defaults(run=_search)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for the preset and for every field of `RunConfig`, whose docstring has the help."""
    from cibr.train.config import SETTINGS, RunConfig

    arguments = RunConfig.__doc__.partition("Args:")[2]
    found = re.findall(r"^        (\w+): (.*(?:\n            .*)*)", arguments, re.MULTILINE)
    helps = {name: " ".join(text.split()).removesuffix(".") for name, text in found}
    group = parser.add_argument_group("settings", argument_default=argparse.SUPPRESS)
    group.add_argument(
        "--preset", help="few-photos, some-photos or many-photos, by default by number"
    )
    for name, kind in SETTINGS.items():
        option = f"--{name}".replace("_", "-")
        if kind is bool:
            how: dict = {"action": argparse.BooleanOptionalAction}
        elif kind is dict:
            how = {"type": json.loads, "metavar": "JSON"}
        else:
            how = {"type": kind, "metavar": kind.__name__}
        default = getattr(RunConfig, name, None)
        help_text = helps[name] if default is None else f"{helps[name]} (default {default!r})"
        group.add_argument(option, help=help_text, **how)


def _train(arguments: argparse.Namespace) -> None:
    """Trains a model and says what it recalls of held-out images. Models over frozen towers are
    then trained again on all images, if a part of these was held out.
    """
    from cibr.data import available_splits, load_parts
    from cibr.train import build_model, configure, fit
    from cibr.train.config import PRESETS, SETTINGS, preset_for
    from cibr.train.loop import start_accelerator
    from cibr.train.run_folder import create_folder

    given = {n: value for n, value in vars(arguments).items() if n == "preset" or n in SETTINGS}
    config = configure(**given)
    is_main = start_accelerator().is_main_process
    is_held_out = "train+validation" in available_splits(config.dataset)
    everything = "train+validation" if is_held_out else "train"
    train, validation, whole = load_parts(config.dataset, ["train", "validation", everything])
    if config.model in PRESETS:
        given = {"preset": preset_for(len(whole))} | given
        config = configure(**given)
    if is_main:
        n_train, n_validation = len(train), len(validation)
        _say(f"{train.name}: {n_train:,} images for train, {n_validation:,} for validation")
        _say(f"settings: {given.get('preset', config.model)}")
        if "penalty" in given and not config.beta:
            _say(f"warning: the penalty {config.penalty} changes nothing at beta 0: give --beta")
    if len(validation) < 2:
        raise ValueError(f"{train.name}: too few images to hold some out: give 30 or more")
    folder = Path(config.output_dir)
    create_folder(folder, is_main)  # refuses one with files of others before anything is written
    is_twice = is_held_out and config.model in PRESETS
    first = replace(config, output_dir=str(folder / "held_out")) if is_twice else config
    model = build_model(first, train)
    fit(model, train, validation, first)
    if is_main:
        _report_held_out(model, first, validation)
    if is_twice:
        model = build_model(config, whole)
        fit(model, whole, None, config)
    if is_main:
        if arguments.copy_towers:
            model.save_pretrained(folder, copy_towers=True)
        print(f"trained on {len(whole if is_twice else train):,} images: {folder}")
        print(f'find photos with: cibr search {folder} path/to/photos "a dog on the beach"')


def _report_held_out(model, config, pairs) -> None:
    """Prints what a model recalls of held-out pairs, beside a dual encoder whose towers it has."""
    from cibr.evaluate import evaluate_pairs
    from cibr.models import SummedHead

    name = {"names": "names, fine-tuned", "frozen": "heads"}.get(config.model, config.model)
    if isinstance(model.head, SummedHead):
        name += " + CCA"
    rows = evaluate_pairs(model, pairs, name).rows
    rows.to_csv(Path(config.output_dir, "recall.csv"), index=False)
    print(f"\n{len(pairs):,} held-out images, {len(pairs.texts()):,} texts: recall in per cent")
    print(f"{name}, with 95 % intervals:")
    _print_scores(rows)
    if config.towers:
        own = evaluate_pairs(_load(config.towers), pairs, config.towers).rows
        print(f"{config.towers} as it is:")
        _print_scores(own)
        if own["value"].mean() > rows["value"].mean():
            print(f"{config.towers} as it is recalls more: use it instead of these heads")


def _load(name: str, device: str | None = None):
    import torch

    from cibr.models import DualEncoder

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return DualEncoder.from_pretrained(name).to(device)


def _evaluate(arguments: argparse.Namespace) -> None:
    from cibr.evaluate import dataset_tasks, difference, evaluate

    suite = dataset_tasks(arguments.data) if arguments.data else arguments.suite
    where = f"{arguments.data} ({suite[0].split})" if arguments.data else suite
    results = []
    for name in filter(None, (arguments.model, arguments.compare_with)):
        model = _load(name, arguments.device)
        folder = arguments.output_dir and arguments.output_dir / quote(name.strip("/"), safe="")
        results.append(evaluate(model, suite, name=name, output_dir=folder))
        print(f"\n{name} on {where}: per cent, with 95 % intervals")
        _print_scores(results[-1].rows)
    if len(results) == 2:
        print(f"\n{results[0].model} minus {results[1].model}: points, with 95 % intervals")
        _print_scores(difference(*reversed(results)), "difference")


def _print_scores(rows, value: str = "value") -> None:
    """Prints a line a metric for each data set, with the number of independent items, and beside
    scores those of guessing.
    """
    from cibr.evaluate import format_table

    for dataset, part in rows.groupby("dataset", sort=False):
        print(f"{dataset}, n = {part['n'].iloc[0]:,}")
        table = format_table(part, value).T
        if "chance" in part:
            chance = part.set_index("metric")["chance"]
            table["chance"] = [f"chance {100 * chance[metric]:.1f}" for metric in table.index]
        print(table.to_string(header=False, index_names=False), "\n")


def _search(arguments: argparse.Namespace) -> None:
    from cibr.data.pairs import IMAGE_SUFFIXES
    from cibr.utils import check_number

    check_number("--top", arguments.top, 1)
    for query in arguments.query:
        if not query.strip():
            raise ValueError("the text to search for is empty: say what the images should show")
        if query.lower().endswith(tuple(IMAGE_SUFFIXES)):
            raise ValueError(f"{query!r} is the name of an image: search by a text")
    model = _load(arguments.model, arguments.device)
    files, images = _index(model, arguments.folder)
    for query in arguments.query:
        cosines = images @ model.embed_texts([query])[0].cpu()
        print(f"\n{query}\nrank  cosine  image")
        ranked = cosines.argsort(descending=True, stable=True).tolist()
        for rank, i in enumerate(ranked[: arguments.top], 1):
            print(f"{rank:4}  {cosines[i]:6.3f}  {files[i]}")


def _index(model, folder: Path):
    """The images in a folder and its subfolders that decode, and their embeddings, which a file in
    the cache folder keeps by the images' names, sizes and dates.
    """
    import torch
    from PIL import Image
    from safetensors.torch import load_file
    from tqdm import tqdm

    from cibr.data.pairs import IMAGE_SUFFIXES, open_rgb
    from cibr.models.frozen_features import save_to_cache
    from cibr.utils import cache_folder, digest

    # What the model makes of a text and an image tells it from others of its name.
    probe = torch.cat([model.embed_texts(["a"]), model.embed_images([Image.new("RGB", (64, 64))])])
    about = repr((str(folder.resolve()), (100 * probe).round().int().tolist()))
    index = cache_folder() / "search" / f"{digest(about)[:24]}.safetensors"
    known, found = load_file(index) if index.exists() else {}, {}
    for file in tqdm(sorted(folder.rglob("*")), delay=2):
        if file.suffix.lower() not in IMAGE_SUFFIXES or not file.is_file():
            continue
        state = file.stat()
        key = digest(repr((str(file), state.st_size, state.st_mtime_ns)))
        try:
            row = known[key] if key in known else model.embed_images([open_rgb(file)])[0].cpu()
        except ValueError as error:
            _say(f"left out: {error}")
            continue
        found[file] = key, row
    if not found:
        raise ValueError(f"no image in {str(folder)!r}: give a folder with some")
    save_to_cache(index, dict(found.values()))
    return [*found], torch.stack([row for _, row in found.values()])


if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # put there by `python -m`; see `_import_plugin`
        del sys.path[0]
    sys.exit(main())
