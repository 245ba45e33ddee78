"""Time, peak memory and gradient error of a training step at large batches, beside the ways others have.

    python bench/step.py [--save]

Encoders are the tiny ones, fed with noise; parts have 256 rows. `open_clip` is the accumulation of its training
script, `plain accumulation` the mean of the losses of the parts, as a trainer that knows nothing of contrast does
it, `plain torch` the whole batch in one graph, and the floor the encoders alone without any loss. The second table
is a step of CLIP's ViT-B/32, from scratch weights, and what of it the penalty takes.
"""

import importlib.util
import sys
import time
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from _measure import arguments, medians, peak_mib, show

from cibr import CIBRLoss, DualEncoder, clip_loss
from cibr.losses.penalties import PENALTIES, PenaltyInputs
from cibr.losses.vmf import sample_vmf
from cibr.models.features import Batch, encode_images, encode_texts
from cibr.models.towers import ClipBackbone, ImageProcessor, train_tokenizer
from cibr.train.grad_cache import GradCache

SIZES, PART, CLIP_ROWS, CLIP_PART = (256, 1024, 4096), 256, 16, 4
BETA = 0.05


def inputs(n: int, size: int = 32, tokens: int = 12, vocabulary: int = 256) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)
    ids = torch.randint(2, vocabulary, (n, tokens), generator=generator)
    return Batch(images, (ids, torch.ones_like(ids)), torch.arange(n))


def tiny() -> DualEncoder:
    torch.manual_seed(0)
    return with_temperature(DualEncoder.tiny(["a letter", "another one"], width=8))


def with_temperature(model: DualEncoder) -> DualEncoder:
    model.set_temperature(0.1, learn=True)
    return model.train()


def encode(model, batch, rows=slice(None)):
    image = encode_images(model, batch.images[rows]).features
    return image, encode_texts(model, tuple(t[rows] for t in batch.texts)).features


def slices(n):
    return [slice(start, start + PART) for start in range(0, n, PART)]


def ours(model, batch, beta=BETA, part=PART):
    loss_fn = CIBRLoss(beta)
    cache = GradCache(model, batch, Accelerator(), micro_batch_size=part)
    loss_fn(**cache.features, logit_scale=model.logit_scale, labels=cache.labels)["loss"].backward()
    cache.backward()


def plain_loss(image, text, scale):
    logits, target = scale * image @ text.T, torch.arange(len(image))
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
        loss_fn(*(torch.cat(side) for side in zip(*fresh, strict=True)), model.logit_scale).backward()


def floor(model, batch):
    for rows in slices(len(batch.labels)):
        sum(side.sum() for side in encode(model, batch, rows)).backward()


STEPS = {
    "cibr": ours,
    "cibr, one part": partial(ours, part=0),
    "open_clip": open_clip,
    "plain accumulation": plain_accumulation,
    "plain torch": plain,
    "encoders alone": floor,
}
if not importlib.util.find_spec("open_clip"):
    del STEPS["open_clip"]


def timed(step, model, batch) -> float:
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    step(model, batch)
    return time.perf_counter() - start


def prepared(name: str, n: int):
    """A step that is ready to run, once run on a small batch so that libraries have their buffers."""
    model = tiny()
    timed(STEPS[name], model, inputs(64))
    return partial(timed, STEPS[name], model, inputs(n))


def gradients(step, batch) -> tuple[torch.Tensor, float]:
    """Of the encoders in one vector, and of the temperature."""
    model = tiny()
    step(model, batch)
    rest = [p.grad.flatten() for name, p in model.named_parameters() if name != "log_logit_scale"]
    return torch.cat(rest).double(), model.log_logit_scale.grad.item()


def errors(n: int) -> dict[str, dict[str, float]]:
    """How far each way's gradients are from plain torch's on the whole batch, without penalty and noise."""
    batch, found = inputs(n), {}
    expected, temperature = gradients(plain, batch)
    for name, step in STEPS.items():
        if name != "encoders alone":
            step = partial(step, beta=0.0) if name.startswith("cibr") else step
            encoders, scale = gradients(step, batch)
            error = (encoders - expected).norm() / expected.norm()
            found[name] = {"gradient error": error.item(), "temperature's gradient / exact": scale / temperature}
    return found


def table_of_steps() -> list[dict]:
    rows = []
    for n in SIZES:
        model, batch, wrong = tiny(), inputs(n), errors(n)
        calls = {name: partial(timed, step, model, batch) for name, step in STEPS.items()}
        seconds = medians(calls, n_runs=5 if n <= 256 else 3, n_warm=int(n <= 1024))
        for name, value in seconds.items():
            row = {"n": n, "step": name, "s": value, "/ plain torch": value / seconds["plain torch"]}
            rows.append(row | {"peak MiB": peak_mib(prepared, name, n)} | wrong.get(name, {}))
    return rows


def vit_b_32() -> DualEncoder:
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig())
    return with_temperature(
        DualEncoder(ClipBackbone(clip), ImageProcessor(224, 224), train_tokenizer(["a letter"]))
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
    given = PenaltyInputs(image, text, image, text, None, None, None, None, CIBRLoss(BETA))
    return BETA * PENALTIES["vmf"](given).value


def noise(image, text):
    return sum(sample_vmf(side, 1024.0).sum() for side in (image, text))


def seconds_of(part) -> float:
    """Forward and backward of a part of the loss, on unit vectors."""
    generator = torch.Generator().manual_seed(0)
    features = [F.normalize(torch.randn(CLIP_ROWS, 512, generator=generator), dim=1) for _ in range(2)]
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
    seconds |= medians({name: partial(seconds_of, loss) for name, loss in losses.items()}, n_runs=101, n_warm=5)
    rows = [{"what": name, "s": value, "% of a step": 100 * value / whole} for name, value in seconds.items()]
    for row in rows[:2]:
        row["peak MiB"] = peak_mib(prepared_clip, parts[row["what"]])
    return rows


def main() -> None:
    save = arguments(__doc__.splitlines()[0]).save
    show(f"a step of the tiny encoders, parts of {PART}", "step", table_of_steps(), save)
    show(f"a step of ViT-B/32, {CLIP_ROWS} pairs", "clip_step", table_of_clip(), save)


if __name__ == "__main__":
    main()
