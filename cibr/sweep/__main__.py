"""`python -m cibr.sweep SWEEP.yaml --processes 2`: does the runs of a file that its table lacks.

Start it as often as you like, on several machines with one file system too: no run is done twice, and what a
killed command had in hand is taken up by another. A failed run is a row with its error. `--run NAME --results
AGAIN.csv` makes one row of a table again, beside it.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from cibr.sweep import Plan, missing, read_plan, run_id, run_sweep
from cibr.sweep.engine import OK
from cibr.sweep.runs import outcomes


def main() -> int:
    """Says what is done, does what is missing; the exit status is 1 when a run failed, 130 when interrupted."""
    parser = _parser()
    options = parser.parse_args()
    try:
        plan = read_plan(options.sweep)
        plan = replace(plan, results=options.results.resolve()) if options.results else plan
        plan = plan.only(options.only) if options.only else plan
        plan = plan.run(options.run) if options.run else plan
        plan = plan.shard(options.shard) if options.shard else plan
        work = plan.function()
        _say_progress(plan)
        if options.dry_run:
            for settings in missing(plan.runs, plan.results):
                print(f"missing {run_id(settings)} {json.dumps(settings)}")
            return 0
        run_sweep(plan.runs, plan.results, work, options.processes, retry=options.retry)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        _say_progress(plan)
        return 130
    return 1 if _say_progress(plan) else 0


def _say_progress(plan: Plan) -> int:
    """Prints how many runs are done, missing and failed, with the errors; returns the number of failed ones."""
    rows, names = outcomes(plan.results), [run_id(settings) for settings in plan.runs]
    failed = {name: rows[name] for name in names if name in rows and rows[name] != OK}
    n_missing = sum(name not in rows for name in names)
    n_done = len(names) - n_missing - len(failed)
    print(f"{plan.results.name}: {n_done} done, {n_missing} missing, {len(failed)} failed", flush=True)
    for name, error in failed.items():
        print(f"failed {name} {error}", flush=True)
    return len(failed)


def _parser() -> argparse.ArgumentParser:
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="cibr.sweep", description=__doc__, formatter_class=as_written)
    parser.add_argument("sweep", type=Path, help="a YAML file with results, work, fixed and arms")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="that work side by side")
    parser.add_argument("--dry-run", action="store_true", help="only say what is done, missing and failed")
    parser.add_argument("--retry", action="store_true", help="do failed runs again")
    parser.add_argument("--shard", metavar="i/n", help="every n-th run from the i-th, for one of n machines")
    parser.add_argument("--run", metavar="NAME", help="the one run of this name in the table")
    parser.add_argument("--results", type=Path, metavar="CSV", help="another table, to do again what is done")
    parser.add_argument(
        "--only", action="append", metavar="SETTING=VALUE", help="runs with this value, or with one of [a, b]"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
