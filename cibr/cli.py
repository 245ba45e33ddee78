"""The command `cibr` (or `python -m cibr.cli`): compare recipes, train a model, evaluate it on
benchmarks, search a folder of images.

Errors are reported in one line on stderr, with exit code 2 for arguments that do not parse and 1
otherwise; `--debug` shows the traceback.
"""

import argparse
import importlib
import importlib.util
import io
import itertools
import json
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import quote

import cibr

_EXAMPLES = """examples:
  cibr train --dataset glyphs --penalty vmf --beta 0.05 --output-dir runs/mine
  cibr train config.json --seed 1
  accelerate launch -m cibr.cli train config.json
  cibr evaluate runs/mine --compare-with clip-tiny
  cibr evaluate runs/mine --data path/to/folder
  cibr compare --dataset path/to/folder --pretrained openai/clip-vit-base-patch32
  cibr search runs/mine path/to/photos "a dog on the beach" "a red car" --top 5
"""
_COMPARED = ("recipes", "pretrained", "unpaired", "keep")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Args:
        argv: the arguments, by default those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):  # names of files need not be valid text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    argv = [re.sub("^--[^=]+", lambda option: option[0].replace("_", "-"), word) for word in argv]
    print_once = cache(_print_error)  # a data set may be loaded twice
    try:
        if any(word.startswith("--max-skipped") for word in argv):
            now = "unusable samples, fewer than a tenth, are left out with a warning"
            raise ValueError(f"--max-skipped is gone: {now}")
        arguments = _parser("".join(argv[:1])).parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print_once(f"warning: {message}")
            for module in arguments.plugin:
                _import_plugin(module)
            arguments.run(arguments)
        return 0
    except SystemExit as stop:  # from the parser, or from a run that was stopped
        return stop.code
    except KeyboardInterrupt:  # the run has reported where it is saved
        _print_error("stopped by Ctrl-C")
        return 130
    except Exception as error:
        if "--debug" in argv:
            raise
        is_ours = isinstance(error, (ValueError, OSError, FloatingPointError))
        unexpected = f"{type(error).__name__}: {error} (--debug shows where)"
        _print_error(str(error) if is_ours else unexpected)
        return 1


def _import_plugin(name: str) -> None:
    """Imports a module that is installed or lies in the current folder.

    No other module is looked for there.
    """
    try:
        if importlib.util.find_spec(name) is None:
            files = [Path(f"{name}.py"), Path(name) / "__init__.py"]
            file = next(filter(Path.is_file, files), files[0])
            spec = importlib.util.spec_from_file_location(name, file)
            sys.modules[name] = module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        importlib.import_module(name)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"--plugin {name}: {error}") from error


def _print_error(message: str) -> None:
    print(f"cibr: {' '.join(message.split())}", file=sys.stderr)


def _parser(command: str) -> argparse.ArgumentParser:
    """The argument parser of a command, whose settings or recipes take long to import."""
    common = argparse.ArgumentParser(add_help=False)
    modules = "a module to import first, which registers penalties, data sets or suites"
    common.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=modules)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    with_model = argparse.ArgumentParser(add_help=False, parents=[common])
    with_model.add_argument("model", help="clip-tiny, cibr-tiny, a folder or a hub id")
    with_model.add_argument("--device", default="auto", help="by default a GPU if available")

    about = __doc__.partition("\n\n")[0]
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "cibr", description=about, epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"cibr {cibr.__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | evaluate | compare | search")

    train = commands.add_parser("train", help="train a model, CLIP or CIBR", parents=[common])
    file_help = "a JSON file with settings, such as a run's run.json; options override it"
    train.add_argument("config", nargs="?", type=Path, help=file_help)
    recipe = "tested settings: very-few-pairs, few-pairs, many-pairs, one-caption, wrong-captions"
    train.add_argument("--preset", default=argparse.SUPPRESS, help=recipe)
    if command == "train":
        _add_settings(train)
    train.set_defaults(run=_train)

    about = "measure a model on benchmarks"
    evaluate = commands.add_parser("evaluate", help=about, parents=[with_model])
    on = evaluate.add_mutually_exclusive_group()
    suites = "characters (default), photos, paper, a plugin's, or a YAML file of tasks"
    on.add_argument("--suite", help=suites)
    on.add_argument("--data", metavar="NAME_OR_FOLDER", help="one data set instead of a suite")
    other = "a second model, subtracted from the first"
    evaluate.add_argument("--compare-with", metavar="MODEL", help=other)
    evaluate.add_argument("--limit", type=int, default=0, help="images per set; 0 for all")
    evaluate.add_argument("--output-dir", type=Path, help="a folder for scores and predictions")
    evaluate.add_argument("--batch-size", type=int, default=256, help="items per batch (256)")
    evaluate.set_defaults(run=_evaluate)

    _add_compare(commands, common, command)

    about = "rank a folder's images by queries"
    search = commands.add_parser("search", help=about, parents=[with_model])
    folder = "image folder, searched recursively; embeddings are kept for the next search"
    search.add_argument("folder", type=Path, help=folder)
    queries = "queries: texts, or image files to find similar ones"
    search.add_argument("query", nargs="+", help=queries)
    search.add_argument("--top", type=int, default=5, help="number of images to print (5)")
    search.set_defaults(run=_search)
    return parser


def _add_compare(commands, common: argparse.ArgumentParser, command: str) -> None:
    """The command `compare`, with the names of the recipes if it was called."""
    about = "find out which recipe works on your pairs"
    compare = commands.add_parser("compare", help=about, parents=[common])
    dataset = "a folder with metadata.csv, a data set's name or a hub id"
    compare.add_argument("--dataset", required=True, help=dataset)
    recipes = "by default all"
    if command == "compare":
        from cibr.compare import RECIPES

        recipes += f" of {', '.join(RECIPES)} (self-training with --unpaired)"
    compare.add_argument("--recipes", nargs="+", default=[], metavar="NAME", help=recipes)
    dual = "also a pretrained dual encoder, as it is and with heads; folder or hub id; repeatable"
    keep = "a row of the table whose model is saved, whichever wins, such as 'NAME as it is'"
    compare.add_argument("--keep", default="", metavar="NAME", help=keep)
    compare.add_argument("--pretrained", action="append", default=[], metavar="NAME", help=dual)
    unpaired = "a folder of images and texts that are not pairs, for self-training"
    compare.add_argument("--unpaired", default="", metavar="FOLDER", help=unpaired)
    compare.add_argument("--trials", type=int, default=8, help="trials of each recipe (8)")
    compare.add_argument("--seeds", type=int, default=3, help="of each recipe's best trial (3)")
    folder = "for report, table, winner in search, all heads; runs/compare-NAME by default"
    compare.add_argument("--output-dir", type=Path, help=folder)
    compare.set_defaults(run=_compare)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for every field of `RunConfig`."""
    from cibr.train.config import DEFAULTS, SETTINGS

    group = parser.add_argument_group("settings")
    for name, default in DEFAULTS.items():
        kind = type(default)
        how: dict = {"type": kind, "metavar": kind.__name__}
        if kind is bool:
            how = {"action": argparse.BooleanOptionalAction}
        elif kind is dict:
            how = {"type": json.loads, "metavar": "JSON"}
        elif kind is tuple:
            how = {"type": float, "nargs": len(default), "metavar": "float"}
        help_text = f"{SETTINGS[name].metadata['help']} (default {default!r})"
        option = f"--{name}".replace("_", "-")
        group.add_argument(option, default=argparse.SUPPRESS, help=help_text, **how)


def _train(arguments: argparse.Namespace) -> None:
    from accelerate import PartialState

    from cibr.data import sizes
    from cibr.train import build_model, configure, fit, load_splits

    config = configure(**_settings(arguments))
    train, validation, _ = load_splits(config)
    if PartialState().is_main_process:
        _print_error(sizes(train, validation))
    if len(validation) < 50:
        what = f"{len(validation)} images for validation are few: recalls of them say little"
        _print_error(f"warning: {what}")
    history = fit(build_model(config, train), train, validation, config)
    if PartialState().is_main_process:
        print(history.iloc[-1].to_string())
        print(f"\nmodel and history: {config.output_dir}")


def _settings(arguments: argparse.Namespace) -> dict:
    """The settings of the file, overridden by those of the command line."""
    others = ("config", "run", "debug", "plugin")
    given = {name: value for name, value in vars(arguments).items() if name not in others}
    file = arguments.config
    if file is None:
        return given
    try:
        stored = dict(json.loads(file.read_text(encoding="utf-8")))
        run = dict(stored.get("configuration", {}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is not a JSON object ({error})") from error
    if run and "preset" in given:
        raise ValueError(f"{str(file)!r} is of a run and sets everything: leave out --preset")
    for name in ("output_dir", "max_skipped"):  # which is taken, which earlier runs recorded
        run.pop(name, None)
    return (run or stored) | given


def _compare(arguments: argparse.Namespace) -> None:
    from cibr._report import shown_table
    from cibr.compare import RECIPES, SEARCH, compare_recipes
    from cibr.data import resolve
    from cibr.train.config import runs_folder
    from cibr.utils import digest

    source = resolve(arguments.dataset)  # folders may share a name
    place = Path(source.place).resolve() if os.path.isdir(source.place) else source.place
    name = f"compare-{source.name}-{digest(str(place))[:6]}"
    folder = arguments.output_dir or runs_folder() / name
    options = {"n_trials": arguments.trials, "n_seeds": arguments.seeds}
    options |= {name: getattr(arguments, name) for name in _COMPARED}
    found = compare_recipes(arguments.dataset, folder, **options)
    print(shown_table(found.table).to_string(), end="\n\n")
    for name in found.table["recipe"].unique():
        if name in RECIPES:
            print(f"{name}: {RECIPES[name].about}")
    kept = arguments.keep or found.winners[SEARCH]
    print(f"\n{found.advice}\n\nreport, table, and the model of {kept}: {folder}")


def _load(name: str, device: str):
    import torch

    from cibr.models import DualEncoder

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = DualEncoder.from_pretrained(name)
    try:
        return model.to(device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"--device {device} ({error}): give cpu, or a GPU that is there"
        ) from error


def _evaluate(arguments: argparse.Namespace) -> None:
    from cibr import evaluate as evaluation
    from cibr.utils import save_table

    names = filter(None, (arguments.model, arguments.compare_with))
    models = {name: _load(name, arguments.device) for name in names}
    suite = arguments.suite or "characters"
    if arguments.data:
        suite = evaluation.dataset_tasks(arguments.data)
    results = []
    for name, model in models.items():
        folder = arguments.output_dir and arguments.output_dir.expanduser() / _quoted(name)
        options = {n: getattr(arguments, n) for n in ("limit", "batch_size")}
        options["output_dir"] = folder
        results.append(evaluation.evaluate(model, suite, name=name, **options))
        title = arguments.data or f"suite {results[-1].suite}"
        for task, found in results[-1].predictions.items() if arguments.data else ():
            n_images = len(next(iter(found.items.values())))
            _print_error(f"{task.title}: {n_images:,} images for {task.split}, {task.kind}")
        print(f"\n{name} on {title}: per cent, with 95 % intervals")
        _print_tables(results[-1].rows, "value")
    if len(results) == 2:
        model, other = results
        differences = evaluation.difference(other, model)
        if arguments.output_dir:
            folder = arguments.output_dir.expanduser() / _quoted(model.model) / model.suite
            save_table(differences, folder / f"minus-{_quoted(other.model)}")
        print(f"\n{model.model} minus {other.model}, paired by image: points, with 95 % intervals")
        _print_tables(differences, "difference")


def _quoted(name: str) -> str:
    """A model's name as that of a folder; `x/m` and `x-m` have one each."""
    return quote(name.strip("/"), safe="")


def _print_tables(rows, value: str) -> None:
    from cibr.evaluate import format_table

    for _, of_kind in rows.groupby("kind", sort=False):
        table = format_table(of_kind, value)
        narrower = table.T if len(table) < len(table.columns) else table
        print(narrower.to_string(), "\n")


def _search(arguments: argparse.Namespace) -> None:
    from cibr.data.pairs import open_rgb
    from cibr.utils import check_number

    check_number("--top", arguments.top, 1)
    if not all(query.strip() for query in arguments.query):
        raise ValueError("the text to search for is empty: describe what the images should show")
    model = _load(arguments.model, arguments.device)
    files, features = _index(model, arguments.model, arguments.folder)
    for query in arguments.query:
        if os.path.isfile(query):  # False for impossible names, too
            [vector] = model.embed_images([open_rgb(query)]).cpu()
        else:
            [vector] = model.embed_texts([query], truncate=True).cpu()
        cosines = features @ vector
        if len(arguments.query) > 1:
            print(f"\n{query}")
        print("rank  cosine  image")
        ranked = cosines.argsort(descending=True, stable=True).tolist()
        for rank, i in enumerate(ranked[: arguments.top], 1):
            print(f"{rank:4}  {cosines[i]:6.3f}  {files[i]}")


def _index(model, name: str, folder: Path):
    """The intact images in a folder and its subfolders, and their embeddings; the cache folder
    keeps these while model and file are the same, also of a search that was interrupted.
    """
    import torch
    from PIL import Image
    from tqdm import tqdm

    from cibr.data.pairs import IMAGE_SUFFIXES
    from cibr.models.features import keep_tensors, read_tensors
    from cibr.utils import cache_folder, digest

    probe = torch.cat(
        [model.embed_texts(["a photo"]), model.embed_images([Image.new("RGB", (64, 64))])]
    )
    index = cache_folder() / "search" / digest(f"{folder.resolve()} {name}")[:24]
    stored = read_tensors(index)
    before = stored.pop("probe", probe[:0])  # another device or number of threads rounds otherwise
    if before.shape != probe.shape or not torch.allclose(before, probe, atol=1e-3):
        stored = {}
    known = dict(stored)
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            state = file.stat()
            seen = str(file.relative_to(folder)), state.st_size, state.st_mtime_ns
            files[digest(repr(seen))] = file
    new = {key: file for key, file in files.items() if key not in known}
    images = _images(tqdm(new.items(), desc="images", delay=2))
    try:
        while some := dict(itertools.islice(images, 16)):  # in memory at full size
            vectors = model.embed_images([*some.values()]).cpu()
            known |= {key: vector.clone() for key, vector in zip(some, vectors, strict=True)}
    finally:  # an interrupted search keeps what it has embedded
        kept = {key: known[key] for key in files if key in known}
        if kept and kept.keys() != stored.keys():
            keep_tensors(index, kept | {"probe": probe})
    if not kept:
        raise ValueError(f"no image in {str(folder)!r}: give a folder with some")
    return [files[key] for key in kept], torch.stack([*kept.values()])


def _images(files: Iterable[tuple[str, Path]]) -> Iterator[tuple]:
    """The images of files, by their keys, without broken ones."""
    from cibr.data.pairs import open_rgb

    for key, file in files:
        try:
            yield key, open_rgb(file)
        except (OSError, ValueError):
            _print_error(f"left out {str(file)!r}, which does not decode as an image")


if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # put there by `python -m`; see `_import_plugin`
        del sys.path[0]
    sys.exit(main())
