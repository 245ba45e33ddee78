"""Shared code of the benchmarks: interleaved timing, peak memory, and result tables with machine
details.
"""

import argparse
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

RESULTS = Path(__file__).resolve().parents[1] / "data" / "results" / "bench.csv"


def seconds(call: Callable) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(
    calls: dict[str, Callable[[], float]], n_runs: int, n_warm: int = 1
) -> dict[str, float]:
    """Median seconds of each call; calls are interleaved, so that disturbances affect all."""
    times = {name: [] for name in calls}
    for run in range(n_runs + n_warm):
        for name, call in calls.items():
            seconds = call()
            if run >= n_warm:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def resident_kib(field: str) -> int:
    """A memory field of the process in KiB, VmRSS or VmHWM (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}: peak memory needs Linux")


def peak_mib(make: Callable, *args) -> float:
    """Growth of the resident set in MiB during a call of `make(*args)()`, in a separate process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cibr.train"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_mib_here, make, args).result()


def _peak_mib_here(make: Callable, args: tuple) -> float:
    call = make(*args)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident_kib("VmRSS")
    call()
    return (resident_kib("VmHWM") - before) / 1024


def device_peak_mib(call: Callable) -> float:
    """Growth of PyTorch's allocated GPU memory in MiB during `call()`."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def machine(peers: Sequence[str] = ()) -> dict[str, str | int]:
    """The processor, the cores and threads, and the versions of torch and of the peers'
    distributions.
    """
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next(
        (line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"
    )
    threads = torch.get_num_threads()
    about = {
        "processor": processor,
        "cores": os.cpu_count(),
        "threads": threads,
        "torch": torch.__version__,
    }
    return about | {peer: version(peer) for peer in peers}


def arguments(description: str, sizes: Sequence[int] = ()) -> argparse.Namespace:
    """Parses a benchmark's command line; with `sizes` it has the options --sizes and --device."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--save", action="store_true", help="also store the table in data/results/bench.csv"
    )
    if sizes:
        parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="batch sizes")
        parser.add_argument(
            "--device", choices=("cpu", "cuda"), default="cpu", help="device of the steps"
        )
    return parser.parse_args()


def show(title: str, name: str, rows: list[dict], save: bool, peers: Sequence[str] = ()) -> None:
    """Prints a table and, if asked, replaces the rows of this name in `bench.csv`, with machine and
    versions.
    """
    table = pd.DataFrame(rows)
    print(f"\n{title}\n{', '.join(f'{k} {v}' for k, v in machine(peers).items())}")
    print(table.to_string(index=False, float_format=lambda x: f"{x:.4g}", na_rep=""))
    if save:
        known = pd.read_csv(RESULTS, dtype=str)  # keeps the digits of other rows
        table = table.map(lambda x: f"{x:.4g}" if isinstance(x, float) else x, na_action="ignore")
        table = table.assign(bench=name, **machine(peers))
        pd.concat([known[known["bench"] != name], table]).to_csv(RESULTS, index=False)
