"""Time and memory of `cibr.metrics` at the size of COCO and ImageNet, compared with peers and the
matrix product.

    python bench/retrieval.py [--save]

Times are medians of interleaved runs in one process; peak memory is the growth of the resident set
in a fresh process for each cell (Linux). The floor is the matrix product in blocks, discarded.
clip-benchmark's functions are called as in its own evaluation, once.
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

from cibr.metrics import recall_at_k, zeroshot_accuracy

DIM, KS = 512, (1, 5, 10)
N_IMAGES, N_CAPTIONS = 5000, 5
N_CLASSIFIED, N_CLASSES = 50_000, 1000


def floor(queries, gallery, _):
    for rows in queries.split(1024):
        rows @ gallery.T


def ours(texts, images, own):
    recall_at_k(images, texts, own, KS)


def topk(texts, images, own):
    """Recalls from the full similarity matrix by torch.topk, with arbitrary ties."""
    scores = texts @ images.T
    for similarity, right in ((scores, own), (scores.T, None)):
        nearest = similarity.topk(max(KS), dim=1).indices
        hits = (
            nearest == own[:, None]
            if right is not None
            else own[nearest] == torch.arange(len(images))[:, None]
        )
        [hits[:, :k].any(1).float().mean().item() for k in KS]


def clip_benchmark(texts, images, own):
    from clip_benchmark.metrics.zeroshot_retrieval import batchify
    from clip_benchmark.metrics.zeroshot_retrieval import recall_at_k as theirs

    scores = texts @ images.T
    positive = torch.zeros_like(scores, dtype=bool)
    positive[torch.arange(len(scores)), own] = True
    for k in KS:
        for s, p in ((scores, positive), (scores.T, positive.T)):
            (batchify(theirs, s, p, 64, "cpu", k=k) > 0).float().mean().item()


def zeroshot(images, classes, labels):
    zeroshot_accuracy(images, classes, labels)


RETRIEVAL = {
    "floor": floor,
    "recall_at_k": ours,
    "torch.topk": topk,
}
SLOW = {"clip-benchmark": clip_benchmark} if importlib.util.find_spec("clip_benchmark") else {}
ZEROSHOT = {"floor": floor, "zeroshot_accuracy": zeroshot}
CALLS = {"retrieval": RETRIEVAL | SLOW, "zero-shot": ZEROSHOT}


def inputs(task: str, share: float = 1.0) -> list[torch.Tensor]:
    """Queries, gallery and the correct item of each query."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"retrieval": (N_IMAGES * N_CAPTIONS, N_IMAGES), "zero-shot": (N_CLASSIFIED, N_CLASSES)}
    n, m = (int(share * size) for size in sizes[task])
    gallery = F.normalize(torch.randn(m, DIM, generator=generator), dim=1)
    own = torch.arange(n) % m
    queries = torch.randn(n, DIM, generator=generator).mul_(3 / DIM**0.5).add_(gallery[own])
    return [F.normalize(queries, dim=1), gallery, own]


def run(task: str, name: str, tensors: list[torch.Tensor]) -> float:
    start = time.perf_counter()
    CALLS[task][name](*tensors)
    return time.perf_counter() - start


def prepared(task: str, name: str):
    """A call that is ready to run, warmed up at a hundredth of the size to allocate the libraries'
    buffers.
    """
    run(task, name, inputs(task, 0.01))
    return partial(run, task, name, inputs(task))


def table(task: str) -> list[dict]:
    tensors = inputs(task)
    quick = {name: partial(run, task, name, tensors) for name in CALLS[task] if name not in SLOW}
    seconds = medians(quick, n_runs=5)
    seconds |= {name: run(task, name, tensors) for name in CALLS[task] if name in SLOW}
    return [
        {
            "task": task,
            "implementation": name,
            "s": value,
            "/ floor": value / seconds["floor"],
            "peak MiB": peak_mib(prepared, task, name),
        }
        for name, value in seconds.items()
    ]


def main() -> None:
    save = arguments(__doc__.splitlines()[0]).save
    title = f"{N_CAPTIONS * N_IMAGES} texts x {N_IMAGES} images"
    title += f", {N_CLASSIFIED} images x {N_CLASSES} classes"
    rows, peers = table("retrieval") + table("zero-shot"), ["clip-benchmark"] if SLOW else []
    show(f"{title}, d = {DIM}, float32", "retrieval", rows, save, peers)
    if not SLOW:
        print("clip-benchmark is absent: pip install clip-benchmark to compare with it")


if __name__ == "__main__":
    main()
