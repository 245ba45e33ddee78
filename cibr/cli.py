"""The command `cibr` (or `python -m cibr.cli`): train a model, evaluate it on benchmarks, search a
folder of images.

Errors are reported in one line on stderr, with exit code 2 for arguments that do not parse and 1
otherwise; `--debug` shows the traceback.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from urllib.parse import quote

import cibr

_EXAMPLES = """examples:
  cibr train --dataset glyphs --penalty vmf --beta 0.05 --output-dir runs/mine
  cibr train --dataset path/to/folder --output-dir runs/photos
  cibr train --dataset path/to/folder --towers openai/clip-vit-base-patch32
  cibr train config.json --seed 1
  accelerate launch -m cibr.cli train config.json
  cibr evaluate runs/mine --compare-with clip-tiny
  cibr evaluate runs/mine --data path/to/folder
  cibr search runs/photos path/to/photos "a dog on the beach" "a red car" --top 5
"""
_GONE = {  # what earlier versions took, and what stands for it
    "compare": "cibr train --dataset FOLDER makes heads + CCA and says what they recall; "
    "--towers CLIP puts them over another model",
    "--max-skipped": "unusable samples, fewer than a tenth, are left out with a warning",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Args:
        argv: the arguments, by default those of the process.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names of files need not be valid text
    warn_once = cache(_print_error)  # a data set may be loaded twice
    try:
        for word in argv[:1] + [word.partition("=")[0] for word in argv if word[:2] == "--"]:
            if word in _GONE:
                raise ValueError(f"{word} is gone: {_GONE[word]}")
        arguments = _parser("".join(argv[:1])).parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: warn_once(f"warning: {message}")
            for module in arguments.plugin:
                _import_plugin(module)
            arguments.run(arguments)
        return 0
    except SystemExit as stop:  # from the parser, or from a run that was stopped
        return stop.code
    except KeyboardInterrupt:
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
    """Imports a module that is installed, or else the file of this name in the current folder, from
    which nothing else is imported.
    """
    try:
        if importlib.util.find_spec(name) is None:
            spec = importlib.util.spec_from_file_location(name, f"{name}.py")
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        importlib.import_module(name)
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"--plugin {name}: {error}") from error


def _print_error(message: str) -> None:
    print(f"cibr: {' '.join(message.split())}", file=sys.stderr)


def _parser(command: str) -> argparse.ArgumentParser:
    """The argument parser; settings of `train`, which take long to import, are of that command."""
    common = argparse.ArgumentParser(add_help=False)
    modules = "a module to import first, which registers penalties, data sets or suites"
    common.add_argument("--plugin", action="append", default=[], metavar="MODULE", help=modules)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    with_model = argparse.ArgumentParser(add_help=False, parents=[common])
    with_model.add_argument("model", help="clip-tiny, cibr-tiny, a folder or a hub id")
    with_model.add_argument("--device", default="auto", help="by default a GPU if available")

    parser = argparse.ArgumentParser(
        "cibr",
        description=__doc__.partition("\n\n")[0],
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cibr {cibr.__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | evaluate | search")

    train = commands.add_parser("train", help="train a model, CLIP or CIBR", parents=[common])
    settings = "a JSON file with settings, such as a run's run.json; options override it"
    train.add_argument("config", nargs="?", type=Path, help=settings)
    train.add_argument("--trials", type=int, default=0, help="settings to try on a held-out tenth")
    train.add_argument("--copy-towers", action="store_true", help="save the frozen towers, too")
    if command == "train":
        _add_settings(train)
    train.set_defaults(run=_train)

    about = "measure a model on benchmarks"
    evaluate = commands.add_parser("evaluate", help=about, parents=[with_model])
    on = evaluate.add_mutually_exclusive_group()
    on.add_argument("--suite", help="characters (default), photos, paper, or a plugin's")
    on.add_argument("--data", metavar="NAME_OR_FOLDER", help="one data set instead of a suite")
    other = "a second model, subtracted from the first"
    evaluate.add_argument("--compare-with", metavar="MODEL", help=other)
    evaluate.add_argument("--limit", type=int, default=0, help="images per set; 0 for all")
    evaluate.add_argument("--output-dir", type=Path, help="a folder for scores and predictions")
    evaluate.add_argument("--batch-size", type=int, default=256, help="items per batch (256)")
    evaluate.set_defaults(run=_evaluate)

    about = "rank a folder's images by queries"
    search = commands.add_parser("search", help=about, parents=[with_model])
    search.add_argument("folder", type=Path, help="a folder of images, searched recursively")
    search.add_argument("query", nargs="+", help="texts, or image files to find similar ones")
    search.add_argument("--top", type=int, default=5, help="number of images to print (5)")
    search.set_defaults(run=_search)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for the preset and for every field of `RunConfig`."""
    from cibr.train.config import DEFAULTS, SETTINGS

    group = parser.add_argument_group("settings")
    preset = "few-photos or many-photos; by default the number of photos chooses"
    group.add_argument("--preset", default=argparse.SUPPRESS, help=preset)
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


def _settings(arguments: argparse.Namespace) -> dict:
    """The settings of the file, overridden by those of the command line."""
    from cibr.train.config import SETTINGS

    given = {n: value for n, value in vars(arguments).items() if n == "preset" or n in SETTINGS}
    file = arguments.config
    if file is None:
        return given
    try:
        stored = dict(json.loads(file.read_text(encoding="utf-8")))
        run = dict(stored.get("configuration", {}))  # of a run.json
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is not a JSON object ({error})") from error
    if run and "preset" in given:
        raise ValueError(f"{str(file)!r} is of a run and sets everything: leave out --preset")
    run.pop("output_dir", None)  # which is taken
    run.pop("max_skipped", None)  # which earlier versions recorded
    return (run or stored) | given


def _train(arguments: argparse.Namespace) -> None:
    from accelerate import PartialState

    from cibr.data import available_splits, load_parts
    from cibr.train import build_model, configure, fit
    from cibr.train.config import preset_for

    given = _settings(arguments)
    config = configure(**given)
    is_main = PartialState().is_main_process
    splits, whole = ["train", "validation"], None
    if "train+validation" in available_splits(config.dataset):  # validation is held out
        whole, train, validation = load_parts(config.dataset, ["train+validation", *splits])
    else:
        train, validation = load_parts(config.dataset, splits)
    if is_main:
        n_train, n_validation = len(train), len(validation)
        _print_error(f"{train.name}: {n_train:,} images for train, {n_validation:,} for validation")
        if n_validation < 50:
            _print_error(f"warning: recalls of {n_validation} images for validation say little")
    if config.model == "frozen":
        if arguments.config is None:
            given = {"preset": preset_for(len(whole or train))} | given
            config = configure(**given)
            _print_error(f"settings: {given['preset']}")
        _train_heads(config, train, validation, whole, arguments, is_main)
        return
    history = fit(build_model(config, train), train, validation, config)
    if is_main:
        print(history.iloc[-1].to_string())
        print(f"\nmodel and history: {config.output_dir}")


def _train_heads(config, train, validation, whole, arguments, is_main: bool) -> None:
    """Heads over frozen towers: measured on the validation part, then, if that was held out,
    trained on the whole.
    """
    from cibr.train import build_model, fit
    from cibr.train.run_folder import RunFolder
    from cibr.train.tuning import tuned

    folder = Path(config.output_dir)
    RunFolder(folder, is_main)  # refuses one with files of others before anything is written
    if arguments.trials:
        config = tuned(config, train, arguments.trials)
    first = config if whole is None else replace(config, output_dir=str(folder / "held_out"))
    model = build_model(first, train)
    fit(model, train, validation, first)
    if is_main:
        _report_held_out(model, config, validation, Path(first.output_dir))
    if whole is not None:
        model = build_model(config, whole)
        fit(model, whole, None, config)
    if not is_main:
        return
    if arguments.copy_towers:
        model.save_pretrained(folder, copy_towers=True)
    print(f"trained on {len(whole or train):,} images: {folder}")
    print(f'find photos with: cibr search {folder} path/to/photos "a dog on the beach"')


def _report_held_out(model, config, pairs, folder: Path) -> None:
    """Prints what a model recalls of held-out pairs, beside a dual encoder whose towers it has."""
    from cibr.evaluate import evaluate_pairs
    from cibr.utils import save_table

    name = "heads + CCA" if config.cca else "heads"
    rows = evaluate_pairs(model, pairs, name).rows
    save_table(rows, folder / "recall")
    print(f"\n{len(pairs):,} held-out images, {len(pairs.texts()):,} texts: recall in per cent")
    print(f"{name}, with 95 % intervals:")
    _print_tables(rows)
    if config.towers:
        own = evaluate_pairs(_load(config.towers, "auto"), pairs, config.towers).rows
        print(f"{config.towers} as it is:")
        _print_tables(own)
        if own["value"].mean() > rows["value"].mean():
            print(f"{config.towers} as it is recalls more: use it in place of these")


def _load(name: str, device: str):
    import torch

    from cibr.models import DualEncoder

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return DualEncoder.from_pretrained(name).to(device)


def _evaluate(arguments: argparse.Namespace) -> None:
    from cibr.evaluate import dataset_tasks, difference, evaluate

    names = [name for name in (arguments.model, arguments.compare_with) if name]
    models = {name: _load(name, arguments.device) for name in names}
    suite = arguments.suite or "characters"
    if arguments.data:
        suite = dataset_tasks(arguments.data)
    results = []
    for name, model in models.items():
        folder = arguments.output_dir and arguments.output_dir.expanduser() / _file_name(name)
        options = dict(limit=arguments.limit, batch_size=arguments.batch_size, output_dir=folder)
        results.append(evaluate(model, suite, name=name, **options))
        print(f"\n{name} on {arguments.data or suite}: per cent, with 95 % intervals")
        if arguments.data:
            for task, found in results[-1].predictions.items():
                n_images = len(next(iter(found.items.values())))
                print(f"{task.title}: {n_images:,} images for {task.split}, {task.kind}")
        _print_tables(results[-1].rows)
    if len(results) == 2:
        print(f"\n{names[0]} minus {names[1]}, paired by image: points, with 95 % intervals")
        _print_tables(difference(*reversed(results)), "difference")


def _file_name(model: str) -> str:
    """The name of a model's folder of results; `x/m` and `x-m` have one each."""
    return quote(model.strip("/"), safe="")


def _print_tables(rows, value: str = "value") -> None:
    from cibr.evaluate import format_table

    for _, part in rows.groupby("kind", sort=False):
        table = format_table(part, value)
        narrower = table.T if len(table) < len(table.columns) else table
        print(narrower.to_string(), "\n")


def _search(arguments: argparse.Namespace) -> None:
    from cibr.data.pairs import IMAGE_SUFFIXES, open_rgb
    from cibr.utils import check_number

    check_number("--top", arguments.top, 1)
    for query in arguments.query:
        if not query.strip():
            raise ValueError("the text to search for is empty: say what the images should show")
        if Path(query).suffix.lower() in IMAGE_SUFFIXES and not os.path.isfile(query):
            raise ValueError(f"there is no image {query!r}: give its path, or a text")
    model = _load(arguments.model, arguments.device)
    files, image_embeddings = _index(model, arguments.folder)
    for query in arguments.query:
        if os.path.isfile(query):  # False for impossible names, too
            [embedding] = model.embed_images([open_rgb(query)]).cpu()
        else:
            [embedding] = model.embed_texts([query], truncate=True).cpu()
        cosines = image_embeddings @ embedding
        if len(arguments.query) > 1:
            print(f"\n{query}")
        print("rank  cosine  image")
        ranked = cosines.argsort(descending=True, stable=True).tolist()
        for rank, i in enumerate(ranked[: arguments.top], 1):
            print(f"{rank:4}  {cosines[i]:6.3f}  {files[i]}")


def _index(model, folder: Path):
    """The images in a folder and its subfolders that decode, and their embeddings, which a file in
    the cache folder keeps by the images' names, sizes and dates.
    """
    import torch
    from PIL import Image
    from tqdm import tqdm

    from cibr.data.pairs import IMAGE_SUFFIXES
    from cibr.models.features import keep_tensors, read_tensors
    from cibr.utils import cache_folder, digest

    # What the model makes of a text and an image tells it from others of its name.
    probe = torch.cat([model.embed_texts(["a"]), model.embed_images([Image.new("RGB", (64, 64))])])
    about = repr((str(folder.resolve()), (100 * probe).round().int().tolist()))
    index = cache_folder() / "search" / f"{digest(about)[:24]}.safetensors"
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file():
            state = file.stat()
            files[digest(repr((str(file), state.st_size, state.st_mtime_ns)))] = file
    known = {key: row for key, row in read_tensors(index).items() if key in files}
    new = [key for key in files if key not in known]
    try:
        for start in tqdm(range(0, len(new), 16), delay=2):  # in memory at full size
            images = _decoded({key: files[key] for key in new[start : start + 16]})
            embeddings = model.embed_images([*images.values()]).cpu() if images else []
            known |= {key: row.clone() for key, row in zip(images, embeddings, strict=True)}
    finally:  # a search that is stopped keeps what it has embedded
        keep_tensors(index, known)
    if not known:
        raise ValueError(f"no image in {str(folder)!r}: give a folder with some")
    found = [key for key in files if key in known]
    return [files[key] for key in found], torch.stack([known[key] for key in found])


def _decoded(files: dict[str, Path]) -> dict:
    """The images of files, without broken ones."""
    from cibr.data.pairs import open_rgb

    images = {}
    for key, file in files.items():
        try:
            images[key] = open_rgb(file)
        except (OSError, ValueError):
            _print_error(f"left out {str(file)!r}, which does not decode as an image")
    return images


if __name__ == "__main__":
    if sys.path[0] == os.getcwd():  # put there by `python -m`; see `_import_plugin`
        del sys.path[0]
    sys.exit(main())
