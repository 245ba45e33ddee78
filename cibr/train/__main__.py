"""`python -m cibr.train config.json`, or `accelerate launch -m cibr.train config.json` on several devices.

The file holds the parameters of `RunConfig`, those that differ from the defaults:
`{"dataset": "flickr8k", "model": "frozen", "beta": 0.05}`. The run is the one of `book/train.ipynb`.
"""

import argparse
import json
from pathlib import Path

from accelerate import PartialState

from cibr.train import build_model, configure, fit, load_splits


def main() -> None:
    """Reads the configuration, trains, and prints the last row of the history."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="cibr.train", description=__doc__, formatter_class=as_written)
    parser.add_argument("config", type=Path, help="a JSON file with the parameters of the run")
    file = parser.parse_args().config
    try:
        parameters = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(parameters, dict):
            raise ValueError("it holds an object with the parameters of a run")
        config = configure(**parameters)
    except json.JSONDecodeError as error:
        parser.error(f"{file} is not JSON ({error})")
    except (OSError, ValueError) as error:
        parser.error(f"{file}: {error}")
    train, validation, _ = load_splits(config)
    history = fit(build_model(config, train), train, validation, config)
    if PartialState().is_main_process:
        print(history.iloc[-1].to_string())


if __name__ == "__main__":
    main()
