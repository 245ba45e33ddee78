"""One table: the parts of the library beside their peers, as ratios of medians in one run.

    python bench/summary.py [--save]

Calls of a row take turns, so a disturbance affects both. Losses are forward and backward on unit
vectors with 512 dimensions, and their peer is two cross-entropies on the stored similarities. The
other scripts of this folder have more peers, sizes and peak memory.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import loss
import retrieval
import step
from _measure import arguments, medians, seconds, show

from cibr.losses import PENALTIES, CIBRLoss
from cibr.losses.cibr import arguments_of

POOLED = 256  # width of the pooled features that some penalties read


def row(what: str, n: int, ours: Callable, peer_name: str, peer: Callable, n_runs: int) -> dict:
    calls = {"ours": partial(seconds, ours), "peer": partial(seconds, peer)}
    found = medians(calls, n_runs, n_warm=3)
    print(f"{what}, {n}: {found['ours'] / found['peer']:.2f}", file=sys.stderr)
    columns = {"what": what, "n": n, "ms": 1e3 * found["ours"], "peer": peer_name}
    return columns | {"peer's ms": 1e3 * found["peer"], "ratio": found["ours"] / found["peer"]}


def backward(loss_fn: Callable, tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.grad = None
    loss_fn(*tensors).backward()


def objective(name: str, n: int) -> Callable:
    """A step of `CIBRLoss` with a penalty: its own update and the loss."""
    generator = torch.Generator().manual_seed(0)
    pooled = [torch.randn(n, POOLED, generator=generator) for _ in range(2)]
    inputs = {"image_pooled": pooled[0], "text_pooled": pooled[1]}
    provided = {"dims": (loss.DIM, POOLED, POOLED)}
    built = {k: value for k, value in provided.items() if k in arguments_of(name)}
    loss_fn = CIBRLoss(0.05, name, **built)

    def call(image, text, scale):
        loss_fn.update(image, text, **inputs)
        return loss_fn(image, text, scale, output_dict=False, **inputs)

    return call


def loss_rows() -> list[dict]:
    rows = []
    for n in loss.SIZES:
        tensors = loss.inputs(n)
        peer = partial(backward, loss.plain, tensors)
        n_runs = {256: 201, 1024: 31}.get(n, 5)
        calls = {"clip_loss": loss.ours}
        calls |= {f"CIBRLoss, {name}": objective(name, n) for name in PENALTIES}
        for what, call in calls.items():
            ours = partial(backward, call, tensors)
            rows.append(row(what, n, ours, "plain torch", peer, n_runs))
    return rows


def step_rows() -> list[dict]:
    rows = []
    for n in (256, 1024):
        model, batch = step.tiny(), step.inputs(n)
        ours, peer = (partial(step.timed, s, model, batch) for s in (step.ours, step.plain))
        rows.append(row("step, in parts of 256", n, ours, "plain torch, one graph", peer, 7))
    return rows


def recall_rows() -> list[dict]:
    tensors = retrieval.inputs("retrieval")
    ours = partial(retrieval.ours, *tensors)
    peers = {"matrix product": retrieval.floor, "torch.topk": retrieval.topk}
    return [
        row("recall_at_k, COCO's size", len(tensors[0]), ours, name, partial(peer, *tensors), 5)
        for name, peer in peers.items()
    ]


def main() -> None:
    save = arguments(__doc__.splitlines()[0]).save
    rows = [*loss_rows(), *step_rows(), *recall_rows()]
    show("ratio of times, ours / peer", "summary", rows, save)


if __name__ == "__main__":
    main()
