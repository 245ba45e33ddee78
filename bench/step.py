"""Time, peak memory and gradient error of a training step at large batch sizes, compared with other
libraries.

    python bench/step.py [--save] [--device cuda] [--sizes 4096 16384 65536]

All use the tiny encoders on noise, in parts of 256 rows or a sixteenth of the batch. `open_clip`
accumulates as its training script; `sentence-transformers` is its
`CachedMultipleNegativesRankingLoss` in both directions, at a constant temperature; `plain
accumulation` is the mean of the parts' losses, `plain torch` the whole batch in one graph, the
floor no loss. Errors are relative to InfoNCE in float64; a step without a time did not fit on the
GPU. The second table is a step of CLIP's ViT-B/32 on the CPU, and the share of the penalty in it.
"""

import importlib.util
import math
import sys
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import CLIPConfig, CLIPModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _measure import arguments, device_peak_mib, medians, peak_mib, show

from cibr import CIBRLoss, DualEncoder, clip_loss
from cibr.losses.penalties import VMF, LossInputs
from cibr.losses.vmf import sample_vmf
from cibr.models.inputs import Batch
from cibr.models.preprocessing import ImageProcessor, train_tokenizer
from cibr.models.towers import TransformersTowers
from cibr.train.grad_cache import GradCache

SIZES, PART, CLIP_ROWS, CLIP_PART = (256, 1024, 4096), 256, 16, 4
BETA = 0.05


def inputs(
    n: int, size: int = 32, tokens: int = 12, vocabulary: int = 256, device: str = "cpu"
) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = 2 * torch.rand(n, 3, size, size, generator=generator) - 1
    ids = torch.randint(2, vocabulary, (n, tokens), generator=generator)
    ids = ids.to(device)
    return Batch(images.to(device), (ids, torch.ones_like(ids)), torch.arange(n, device=device))


def tiny() -> DualEncoder:
    torch.manual_seed(0)
    return with_temperature(DualEncoder.tiny(["a letter", "another one"], width=8))


def with_temperature(model: DualEncoder) -> DualEncoder:
    model.set_temperature(0.1, learn=True)
    return model.train()


def encode(model, batch, rows=slice(None)):
    image = model.encode_images(batch.images[rows]).features
    return image, model.encode_texts(*(t[rows] for t in batch.texts)).features


def part_of(n):
    return max(PART, n // 16)


def slices(n):
    return [slice(start, start + part_of(n)) for start in range(0, n, part_of(n))]


def ours(model, batch, beta=BETA, part=None):
    loss_fn, part = CIBRLoss(beta), part_of(len(batch.labels)) if part is None else part
    cache = GradCache(model, batch, Accelerator(), micro_batch_size=part)
    terms = loss_fn(**cache.features, logit_scale=model.logit_scale, labels=cache.labels)
    sum(terms.values()).backward()
    cache.backward()


def plain_loss(image, text, scale):
    logits, target = scale * image @ text.T, torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def plain(model, batch):
    plain_loss(*encode(model, batch), model.logit_scale).backward()


def plain_accumulation(model, batch):
    parts = slices(len(batch.labels))
    for rows in parts:
        (plain_loss(*encode(model, batch, rows), model.logit_scale) / len(parts)).backward()


def open_clip(model, batch):
    from open_clip.loss import ClipLoss

    loss_fn, parts = ClipLoss(), slices(len(batch.labels))
    with torch.no_grad():
        known = [encode(model, batch, rows) for rows in parts]
    for i, rows in enumerate(parts):
        fresh = [*known[:i], encode(model, batch, rows), *known[i + 1 :]]
        loss_fn(
            *(torch.cat(side) for side in zip(*fresh, strict=True)), model.logit_scale
        ).backward()


class Sides(torch.nn.Sequential):
    """A `DualEncoder` with the interface of sentence-transformers' losses: one modality, as tensors
    by name.
    """

    def forward(self, side):
        if "images" in side:
            return {"sentence_embedding": self[0].encode_images(side["images"]).features}
        ids_and_mask = (side["input_ids"], side["attention_mask"])
        return {"sentence_embedding": self[0].encode_texts(*ids_and_mask).features}


def sentence_transformers(model, batch):
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss as Cached,
    )

    directions = dict(directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
    part, scale = part_of(len(batch.labels)), model.logit_scale.item()
    loss_fn = Cached(Sides(model), scale, mini_batch_size=part, **directions)
    texts = dict(zip(("input_ids", "attention_mask"), batch.texts, strict=True))
    loss_fn([{"images": batch.images}, texts], batch.labels).backward()


def exact(model, batch):
    """InfoNCE of the whole batch, with the graph of one part in memory at a time, so that float64
    always fits.
    """

    def term(image, text, rows):
        parts = [scale * a[rows] @ b.T for a, b in ((image, text), (text, image))]
        return sum(F.cross_entropy(x, batch.labels[rows], reduction="sum") for x in parts) / (
            2 * len(image)
        )

    parts, scale = slices(len(batch.labels)), model.logit_scale
    encoded = [checkpoint(encode, model, batch, rows, use_reentrant=False) for rows in parts]
    image, text = (torch.cat(side) for side in zip(*encoded, strict=True))
    sum(checkpoint(term, image, text, rows, use_reentrant=False) for rows in parts).backward()


def floor(model, batch):
    for rows in slices(len(batch.labels)):
        sum(side.sum() for side in encode(model, batch, rows)).backward()


STEPS = {
    "cibr": ours,
    "cibr, one part": partial(ours, part=0),
    "open_clip": open_clip,
    "sentence-transformers": sentence_transformers,
    "plain accumulation": plain_accumulation,
    "plain torch": plain,
    "encoders alone": floor,
}
PEERS = {"open_clip": "open_clip_torch", "sentence-transformers": "sentence-transformers"}
ABSENT = [name for name in PEERS if not importlib.util.find_spec(name.replace("-", "_"))]
for name in ABSENT:
    del STEPS[name]


def timed(step, model, batch) -> float:
    wait = torch.cuda.synchronize if batch.images.is_cuda else int
    model.zero_grad(set_to_none=True)
    wait()
    start = time.perf_counter()
    step(model, batch)
    wait()
    return time.perf_counter() - start


def prepared(name: str, n: int):
    """A step that is ready to run, warmed up on a small batch to allocate buffers."""
    model = tiny()
    timed(STEPS[name], model, inputs(64))
    return partial(timed, STEPS[name], model, inputs(n))


def gradients(step, batch, dtype=torch.float32) -> tuple[torch.Tensor, float]:
    """Gradients of the encoders, as one vector, and of the temperature (NaN without one)."""
    model = tiny().to(batch.images.device, dtype)
    step(model, batch)
    rest = [p.grad.flatten() for name, p in model.named_parameters() if name != "log_logit_scale"]
    scale = model.log_logit_scale.grad
    return torch.cat(rest).double(), math.nan if scale is None else scale.item()


def errors(n: int, device: str) -> dict[str, dict[str, float]]:
    """Gradient errors of each method that fits, relative to InfoNCE in float64, without penalty and
    noise.
    """
    batch, found = inputs(n, device=device), {}
    expected, temperature = gradients(exact, batch, torch.float64)
    for name, step in STEPS.items():
        try:
            encoders, scale = gradients(
                partial(step, beta=0.0) if name.startswith("cibr") else step, batch
            )
        except torch.OutOfMemoryError:
            continue
        error = (encoders - expected).norm() / expected.norm()
        found[name] = {
            "gradient error": error.item(),
            "temperature's gradient / exact": scale / temperature,
        }
    return found


def table_of_steps(sizes, device) -> list[dict]:
    rows = []
    for n in sizes:
        wrong = errors(n, device)
        model, batch = tiny().to(device), inputs(n, device=device)
        calls = {name: partial(timed, STEPS[name], model, batch) for name in wrong}
        seconds = medians(
            calls, n_runs=5 if n <= 256 else 3, n_warm=int(n <= 1024 or device != "cpu")
        )
        for name in STEPS:
            row = {"n": n, "step": name} | (
                {} if device == "cpu" else {"device": torch.cuda.get_device_name()}
            )
            if name in wrong:
                row |= {
                    "s": seconds[name],
                    "/ plain torch": seconds[name] / seconds.get("plain torch", math.nan),
                }
                row["peak MiB"] = (
                    peak_mib(prepared, name, n) if device == "cpu" else device_peak_mib(calls[name])
                )
                row |= wrong[name] if name != "encoders alone" else {}
            rows.append(row)
    return rows


def vit_b_32() -> DualEncoder:
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig())
    return with_temperature(
        DualEncoder.from_transformers(
            TransformersTowers(clip, ImageProcessor(224), train_tokenizer(["a letter"]))
        )
    )


def prepared_clip(part: int):
    model = vit_b_32()
    timed(partial(ours, part=part), model, clip_inputs(2))
    return partial(timed, partial(ours, part=part), model, clip_inputs(CLIP_ROWS))


def clip_inputs(n: int) -> Batch:
    return inputs(n, size=224, tokens=77, vocabulary=49_000)


def plain_clip(image, text):
    return clip_loss(image, text, 10.0)


def penalty(image, text):
    return BETA * VMF()(LossInputs(image, text, image, text, torch.tensor(10.0), 1024.0))


def noise(image, text):
    return sum(sample_vmf(side, 1024.0).sum() for side in (image, text))


def seconds_of(part) -> float:
    """Seconds of the forward and backward pass of a part of the loss, on unit vectors."""
    generator = torch.Generator().manual_seed(0)
    features = [
        F.normalize(torch.randn(CLIP_ROWS, 512, generator=generator), dim=1) for _ in range(2)
    ]
    features = [x.requires_grad_() for x in features]
    start = time.perf_counter()
    part(*features).backward()
    return time.perf_counter() - start


def table_of_clip() -> list[dict]:
    losses = {"clip_loss": plain_clip, "penalty": penalty, "sampling noise": noise}
    model, batch = vit_b_32(), clip_inputs(CLIP_ROWS)
    parts = {f"step, parts of {p or CLIP_ROWS}": p for p in (0, CLIP_PART)}
    calls = {name: partial(timed, partial(ours, part=p), model, batch) for name, p in parts.items()}
    seconds = medians(calls, n_runs=3, n_warm=0)
    del model
    whole = min(seconds.values())
    seconds |= medians(
        {name: partial(seconds_of, loss) for name, loss in losses.items()}, n_runs=101, n_warm=5
    )
    rows = [
        {"what": name, "s": value, "% of a step": 100 * value / whole}
        for name, value in seconds.items()
    ]
    for row in rows[:2]:
        row["peak MiB"] = peak_mib(prepared_clip, parts[row["what"]])
    return rows


def main() -> None:
    given = arguments(__doc__.splitlines()[0], SIZES)
    torch.backends.cudnn.allow_tf32 = False  # convolutions in float32, as on the CPU
    rows, peers = (
        table_of_steps(given.sizes, given.device),
        [PEERS[p] for p in PEERS if p not in ABSENT],
    )
    name = "step" if given.device == "cpu" else "step_gpu"
    show("a step of the tiny encoders, float32", name, rows, given.save, peers)
    for peer in ABSENT:
        print(f"{peer} is absent: pip install {PEERS[peer]} to compare with it")
    if given.device == "cpu":
        show(f"a step of ViT-B/32, {CLIP_ROWS} pairs", "clip_step", table_of_clip(), given.save)


if __name__ == "__main__":
    main()
