"""Time and memory of `cibr.losses.clip_loss` and its peers, forward and backward.

    python bench/loss.py [--save]

Times are medians of interleaved runs in one process; on a busy machine only their ratios to plain
torch are comparable. Peak memory is the growth of the resident set in a fresh process for each cell
(Linux). The floor is the three matrix products that every implementation which stores the
similarities needs. `labelled` gives each label to two pairs; `CIBRLoss` is the full objective with
its default penalty and reports.
"""

import importlib.util
import sys
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _measure import arguments, medians, peak_mib, show

from cibr.losses import CIBRLoss, clip_loss

SIZES, DIM = (256, 1024, 4096), 512


def ours(image, text, scale):
    return clip_loss(image, text, scale)


def labelled(image, text, scale):
    return clip_loss(image, text, scale, torch.arange(len(image)) // 2)


def objective(image, text, scale):
    return CIBRLoss(0.05)(image, text, scale, output_dict=False)


def plain(image, text, scale):
    logits = scale * image @ text.T
    target = torch.arange(len(image))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def floor(image, text, scale):
    return (image @ text.T).sum()  # the backward pass adds two products


def open_clip_loss(image, text, scale):
    from open_clip.loss import ClipLoss

    return ClipLoss()(image, text, scale)


LOSSES = {
    "cibr": ours,
    "cibr, labelled": labelled,
    "CIBRLoss": objective,
    "plain torch": plain,
    "matmul floor": floor,
}
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


def prepared(name: str, n: int):
    """A loss that is ready to run, warmed up on a small batch to allocate buffers."""
    step(name, inputs(16))
    return partial(step, name, inputs(n))


def table() -> list[dict]:
    rows = []
    for n in SIZES:
        tensors = inputs(n)
        calls = {name: partial(step, name, tensors) for name in LOSSES}
        seconds = medians(calls, n_runs=31 if n <= 1024 else 7, n_warm=2)
        for name, value in seconds.items():
            row = {
                "n": n,
                "loss": name,
                "ms": value * 1e3,
                "/ plain torch": value / seconds["plain torch"],
            }
            rows.append(row | {"peak MiB": peak_mib(prepared, name, n)})
    return rows


def main() -> None:
    save = arguments(__doc__.splitlines()[0]).save
    peers = ["open_clip_torch"] if "open_clip" in LOSSES else []
    show(f"forward + backward, d = {DIM}, float32", "loss", table(), save, peers)
    if "open_clip" not in LOSSES:
        print("open_clip is absent: pip install open_clip_torch to compare with it")


if __name__ == "__main__":
    main()
