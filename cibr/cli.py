"""The command `cibr` (or `python -m cibr.cli`): train a model, evaluate it on benchmarks, search a
folder of images.

Errors are reported in one line on stderr, with exit code 2 for arguments that do not parse and 1
otherwise; `--debug` shows the traceback.
"""

import argparse
import importlib
import json
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
AT_ONCE = 16  # images in memory at full size
EXAMPLES = """examples:
  cibr train --dataset glyphs --penalty vmf --beta 0.05 --output-dir runs/mine
  cibr train config.json --seed 1
  accelerate launch -m cibr.cli train config.json
  cibr evaluate runs/mine --compare-with clip-tiny
  cibr evaluate runs/mine --data path/to/folder
  cibr search runs/mine path/to/photos "a dog on the beach" --top 5
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code.

    Args:
        argv: the arguments, by default those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    argv = [re.sub("^--[^=]+", lambda option: option[0].replace("_", "-"), word) for word in argv]
    try:
        arguments = _parser(argv[:1] == ["train"]).parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: _fail(f"warning: {message}", 0)
            sys.path.insert(0, "")  # modules in the current folder, as with python -m
            for module in arguments.plugin:
                importlib.import_module(module)
            arguments.run(arguments)
        return 0
    except SystemExit as stop:  # from the parser, or from a run that was stopped
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:  # the run has reported where it is saved
        return _fail("stopped by Ctrl-C", 130)
    except Exception as error:
        if "--debug" in argv:
            raise
        expected = isinstance(error, (ValueError, FileNotFoundError, ConnectionError))
        return _fail(
            str(error) if expected else f"{type(error).__name__}: {error} (--debug shows where)", 1
        )


def _fail(message: str, code: int) -> int:
    print(f"cibr: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parser(with_settings: bool) -> argparse.ArgumentParser:
    """The argument parser; only `train` adds the settings of a run, which take seconds to import."""
    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(
        "cibr", description=__doc__.partition("\n")[0], epilog=EXAMPLES, **layout
    )
    commands = parser.add_subparsers(required=True, metavar="train | evaluate | search")
    train = commands.add_parser("train", help="train a model, CLIP or CIBR", **layout)
    train.add_argument(
        "config", nargs="?", type=Path, help="a JSON file with settings; options override it"
    )
    if with_settings:
        _add_settings(train)
    evaluate = commands.add_parser("evaluate", help="measure a model on benchmarks", **layout)
    evaluate.add_argument("model", help="clip-tiny, cibr-tiny, a folder or a hub id")
    on = evaluate.add_mutually_exclusive_group()
    on.add_argument(
        "--suite", help="characters (default), paper, a suite of a plugin, or a YAML file of tasks"
    )
    on.add_argument("--data", metavar="NAME_OR_FOLDER", help="one data set instead of a suite")
    evaluate.add_argument(
        "--compare-with", metavar="MODEL", help="a second model, subtracted from the first"
    )
    evaluate.add_argument(
        "--limit", type=int, default=0, help="maximum number of images per set; 0 for all"
    )
    evaluate.add_argument("--output-dir", type=Path, help="a folder for results, reused by a rerun")
    search = commands.add_parser(
        "search", help="rank the images of a folder by a text query", **layout
    )
    search.add_argument("model", help="clip-tiny, cibr-tiny, a folder or a hub id")
    search.add_argument("folder", type=Path, help="images in it and in the folders below")
    search.add_argument("text", help="the query")
    search.add_argument("--top", type=int, default=5, help="number of images to print (default 5)")
    evaluate.add_argument(
        "--batch-size", type=int, default=256, help="items per batch (default 256)"
    )
    for each in (evaluate, search):
        each.add_argument(
            "--device", default="auto", help="device of the model; by default a GPU if available"
        )
    for each, run in ((train, _train), (evaluate, _evaluate), (search, _search)):
        each.add_argument(
            "--plugin",
            action="append",
            default=[],
            metavar="MODULE",
            help="a module to import first, which registers penalties, data sets or suites",
        )
        each.add_argument("--debug", action="store_true", help="show the traceback of an error")
        each.set_defaults(run=run)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """An option for every field of `RunConfig`."""
    from cibr.train import RunConfig

    group = parser.add_argument_group("settings")
    for name, field in RunConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        how: dict = {"type": type(default), "metavar": type(default).__name__}
        if isinstance(default, bool):
            how = {"action": argparse.BooleanOptionalAction}
        elif isinstance(default, dict):
            how = {"type": json.loads, "metavar": "JSON"}
        elif isinstance(default, tuple):
            how = {"type": float, "nargs": len(default), "metavar": "float"}
        help_text = f"{field.description} (default {default!r})".replace("%", "%%")
        option = f"--{name}".replace("_", "-")
        group.add_argument(option, default=argparse.SUPPRESS, help=help_text, **how)


def _train(arguments: argparse.Namespace) -> None:
    from accelerate import PartialState

    from cibr.train import build_model, configure, fit, load_splits

    config = configure(**_settings(arguments))
    train, validation, _ = load_splits(config)
    history = fit(build_model(config, train), train, validation, config)
    if PartialState().is_main_process:
        print(history.iloc[-1].to_string())
        print(f"\nmodel and history: {config.output_dir}")


def _settings(arguments: argparse.Namespace) -> dict:
    """The settings of the file, overridden by those of the command line."""
    settings, file = {}, arguments.config
    if file is not None:
        try:
            settings = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            message = (
                f"there is no file of settings {str(file)!r}; a data set is given by --dataset"
            )
            raise FileNotFoundError(message) from error
        except ValueError as error:
            raise ValueError(f"{str(file)!r} is not JSON ({error})") from error
        if not isinstance(settings, dict):
            raise ValueError(
                f'{str(file)!r} holds no settings: give an object, such as {{"beta": 0.05}}'
            )
    for name, value in vars(arguments).items():
        if name not in ("config", "run", "debug", "plugin"):
            settings[name] = value
    return settings


def _load(arguments: argparse.Namespace, name: str):
    import torch

    from cibr.models import DualEncoder

    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    return DualEncoder.from_pretrained(name).to(
        gpu if arguments.device == "auto" else arguments.device
    )


def _evaluate(arguments: argparse.Namespace) -> None:

    from cibr import evaluate as evaluation

    models = {
        name: _load(arguments, name) for name in (arguments.model, arguments.compare_with) if name
    }

    def measure(name: str, suite):
        folder = arguments.output_dir and arguments.output_dir / name.strip("/").replace("/", "-")
        options = dict(limit=arguments.limit, batch_size=arguments.batch_size, output_dir=folder)
        return evaluation.evaluate(models[name], suite, name=name, **options)

    suite = (
        evaluation.dataset_tasks(arguments.data)
        if arguments.data
        else arguments.suite or "characters"
    )
    found = [measure(name, suite) for name in models]
    for each in found:
        title = arguments.data or f"suite {each.suite}"
        print(f"\n{each.model} on {title}: per cent (ranks from 1), with 95 % intervals")
        _print_tables(each.rows, "value")
    if len(found) == 2:
        model, other = found
        print(
            f"\n{model.model} minus {other.model}, paired by image: percentage points, with 95 % intervals"
        )
        _print_tables(evaluation.compare(other, model), "difference")


def _print_tables(rows, value: str) -> None:
    from cibr.evaluate import format_table

    for _, of_kind in rows.groupby("kind", sort=False):
        table = format_table(of_kind, value)
        print(
            (table.T if len(table) < len(table.columns) else table).to_string(), "\n"
        )  # the narrower way


def _search(arguments: argparse.Namespace) -> None:
    import torch

    from cibr.data.pairs import open_rgb

    if not arguments.text.strip():
        raise ValueError("the text to search for is empty: describe what the images should show")
    if not arguments.folder.is_dir():
        raise FileNotFoundError(
            f"there is no folder {str(arguments.folder)!r}: give one with images"
        )
    if arguments.top < 1:
        raise ValueError(f"--top is {arguments.top}: give the number of images to print, 1 or more")
    files = sorted(
        file for file in arguments.folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES
    )
    model = _load(arguments, arguments.model)
    kept, features = [], []
    for start in range(0, len(files), AT_ONCE):
        images = []
        for file in files[start : start + AT_ONCE]:
            try:
                images.append(open_rgb(file, str(file)))
                kept.append(file)
            except (OSError, ValueError):
                print(
                    f"cibr: left out {str(file)!r}, which does not decode as an image",
                    file=sys.stderr,
                )
        features.append(model.embed_images(images))
    if not kept:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise ValueError(
            f"no image in {str(arguments.folder)!r}: it has none of {suffixes} that decodes"
        )
    cosines = torch.cat(features) @ model.embed_texts([arguments.text], truncate=True)[0]
    print("rank  cosine  image")
    for rank, i in enumerate(
        cosines.argsort(descending=True, stable=True)[: arguments.top].tolist(), 1
    ):
        print(f"{rank:4}  {cosines[i]:6.3f}  {kept[i]}")


if __name__ == "__main__":
    sys.exit(main())
