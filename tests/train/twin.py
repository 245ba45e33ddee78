"""A run in plain PyTorch, which `Training` must equal: one graph for all parts of a batch
and for all processes, and every constant written out.
"""

import math

import torch
from small_runs import PAIRS, settings, small_model
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR

from cibr.losses import CIBRLoss
from cibr.models.inputs import prepare
from cibr.train.loop import epoch_rows

N_STEPS = 6  # of which the last four differ in the weight of the penalty
SAMPLED = {"sample": True, "kappa_e": 50.0}
FIXED = {"kappa_b": 10.0, "kappa_e": 1024.0}
CASES = {
    "clip": dict(beta=0.0),
    "vmf": dict(weight_decay=0.1, loss_options={"kappa_b": 20.0, "kappa_e": 1024.0}),
    "vmf, sampled": dict(loss_options=SAMPLED | {"kappa_b": 10.0}, micro_batch_size=3),
    "crossfit": dict(penalty="crossfit", loss_options=FIXED, micro_batch_size=5),
    "mine": dict(penalty="mine", loss_options=SAMPLED | {"critic_steps": 2}, micro_batch_size=3),
}


def settings_of(case, folder="out", **options):
    return settings(folder, **(dict(weight_decay=1.0, seed=3) | CASES[case] | options))


def model_of(config):
    """A model in float64 whose temperature is below the smallest that a step leaves."""
    model = small_model(config).double()
    model.log_logit_scale.data.fill_(math.log(105))
    return model


def plain_run(config, model, n_processes=1, bf16=False):
    """Trains a model; returns its loss and the mean terms of each epoch.

    Args:
        config: of the run, with the learning rate and the epochs of `settings`.
        model: the initial model, which is trained.
        n_processes: processes whose rows and dropout are imitated.
        bf16: precision of the encoders.
    """
    inputs = prepare(model, PAIRS)
    options = dict(config.loss_options)
    if config.penalty == "mine":
        options["dims"] = model.dim, model.dim_image_pooled, model.dim_text_pooled
    torch.manual_seed(3)
    loss_fn = CIBRLoss(0.1, config.penalty, **options).to(model.log_logit_scale.dtype)
    trained = [*model.parameters()]
    matrices = {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay}
    others = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
    adam = torch.optim.AdamW([matrices, others], lr=1e-3, betas=(0.9, 0.98))
    warm_up = 0.45 if config.model == "tiny" else 0.15
    schedule = OneCycleLR(adam, 1e-3, N_STEPS, pct_start=warm_up, cycle_momentum=False)
    epochs = []
    for step in range(N_STEPS):
        rows = [part.split(8)[step % 3] for part in epoch_rows(PAIRS, 3, step // 3)]
        seed = 3 + 1_000_003 * (step + 1)
        parts = []
        for rank in range(n_processes):
            torch.manual_seed(seed + 7_919 * rank)
            own = inputs[tuple(part.chunk(n_processes)[rank] for part in rows)]
            parts += encoded(config, model, own, bf16)
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        batch["generator"] = torch.Generator().manual_seed(seed)
        loss_fn.update(**{name: x for name, x in batch.items() if name != "labels"})
        is_from_scratch = config.model in ("tiny", "frozen")
        share = min(max(3 * step / N_STEPS - 1, 0), 1) if is_from_scratch else 1
        loss_fn.beta = config.beta * share
        terms = loss_fn(**batch, logit_scale=model.log_logit_scale.exp())
        adam.zero_grad()
        sum(terms.values()).backward()
        clip_grad_norm_(trained, 1.0)
        adam.step()
        schedule.step()
        model.log_logit_scale.data.clamp_(max=math.log(100))
        epochs += [{}] if step % 3 == 0 else []
        values = {name: term.item() for name, term in terms.items()}
        for name, value in (values | {"beta": loss_fn.beta}).items():
            epochs[-1][name] = epochs[-1].get(name, 0.0) + value / 3
    return loss_fn, epochs


def encoded(config, model, batch, bf16):
    """Features and labels of each part of a process's rows, in one graph."""
    model.train()
    parts = []
    n = len(batch.labels)
    for rows in torch.arange(n).split(config.micro_batch_size or n):
        # Weights are cast again for each part; from one cast, gradients would be summed in bf16.
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            image = model.encode_images(batch.images[rows])
            text = model.encode_texts(*(part[rows] for part in batch.texts))
            named = dict(image_features=image.features, text_features=text.features)
            named |= dict(image_pooled=image.pooled.detach(), text_pooled=text.pooled.detach())
        named = {name: value.float() if bf16 else value for name, value in named.items()}
        parts.append(named | {"labels": batch.labels[rows]})
    return parts
