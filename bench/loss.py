"""Time and memory of `cibr.losses.clip_loss` beside its peers, forward and backward.

    python bench/loss.py

Times are medians of runs that take turns in one process; peak memory is the growth of
the resident set in a fresh process for each cell (Linux). The floor is the three matrix
products that no implementation which keeps the similarities can avoid.
"""

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cibr.losses import clip_loss

SIZES, DIM = (256, 1024, 4096), 512


def ours(image, text, scale):
    return clip_loss(image, text, scale)


def plain(image, text, scale):
    logits = scale * image @ text.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def floor(image, text, scale):
    return (image @ text.T).sum()  # the backward pass adds two products


def open_clip_loss(image, text, scale):
    from open_clip.loss import ClipLoss

    return ClipLoss()(image, text, scale)


LOSSES = {"cibr": ours, "plain torch": plain, "matmul floor": floor}
if importlib.util.find_spec("open_clip"):
    LOSSES["open_clip"] = open_clip_loss


def inputs(n: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = [F.normalize(torch.randn(n, DIM, generator=generator), dim=1) for _ in range(2)]
    return [*(x.requires_grad_() for x in features), torch.tensor(20.0, requires_grad=True)]


def step(name: str, tensors: list[torch.Tensor]) -> float:
    for tensor in tensors:
        tensor.grad = None
    start = time.perf_counter()
    LOSSES[name](*tensors).backward()
    return time.perf_counter() - start


def median_seconds(n: int, n_runs: int) -> dict[str, float]:
    tensors = inputs(n)
    times = {name: [] for name in LOSSES}
    for run in range(n_runs + 2):
        for name in LOSSES:
            seconds = step(name, tensors)
            if run >= 2:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def resident_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise ValueError(f"/proc/self/status has no {field}: peak memory needs Linux")


def peak_mib_here(name: str, n: int) -> float:
    step(name, inputs(16))  # libraries load their buffers
    tensors = inputs(n)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident_kib("VmRSS")
    step(name, tensors)
    return (resident_kib("VmHWM") - before) / 1024


def peak_mib(name: str, n: int) -> float:
    command = [sys.executable, __file__, "--peak", name, "--n", str(n)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", choices=LOSSES, help="print the peak MiB of one loss")
    parser.add_argument("--n", type=int, help="batch size of --peak")
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak_mib_here(arguments.peak, arguments.n))
        return
    print(f"forward + backward, d = {DIM}, float32, {torch.get_num_threads()} thread(s)")
    print(f"{'n':>5}  {'loss':<13} {'ms':>8} {'/ plain':>8} {'peak MiB':>9}")
    for n in SIZES:
        seconds = median_seconds(n, n_runs=31 if n <= 1024 else 7)
        for name, value in seconds.items():
            ratio = value / seconds["plain torch"]
            print(f"{n:>5}  {name:<13} {value * 1e3:8.2f} {ratio:8.2f} {peak_mib(name, n):9.1f}")
    if "open_clip" not in LOSSES:
        print("open_clip is absent: pip install open_clip_torch to compare with it")


if __name__ == "__main__":
    main()
