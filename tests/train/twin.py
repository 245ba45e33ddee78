"""Training steps in plain PyTorch, which those of `train_step` must equal: one graph for all parts
of a batch and for all processes, and every constant written out.
"""

import copy
import math

import torch
from small_runs import PAIRS, settings, small_model
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import OneCycleLR

from cibr.losses import CIBRLoss
from cibr.models.features import prepare
from cibr.train.loop import set_up, train_step

N_STEPS = 5  # of which the last three differ in the weight of the penalty
TWICE = {"critic_steps": 2}
CASES = {
    "vmf": dict(weight_decay=0.1, penalty_options={"kappa_b": 20.0}),
    "vmf, sampled": dict(sample=True, kappa_e=50.0, micro_batch_size=3),
    "crossfit, siglip": dict(penalty="crossfit", contrastive="siglip", micro_batch_size=5),
    "mine": dict(penalty="mine", sample=True, penalty_options=TWICE, micro_batch_size=3),
    "rafa, hycd": dict(penalty="rafa", contrastive="hycd", micro_batch_size=2),
}


def settings_of(case, **options):
    return settings(**(dict(weight_decay=1.0, seed=3) | CASES[case] | options))


def model_of(config):
    """A model in float64 whose temperature is below the smallest that a step leaves."""
    model = small_model(config).double()
    model.log_logit_scale.data.fill_(math.log(105))
    return model


def rows_of_steps(n_steps):
    """Images of each step, and the first text of each."""
    generator = torch.Generator().manual_seed(0)
    first = torch.searchsorted(PAIRS.text_to_image(), torch.arange(len(PAIRS)))
    images = [torch.randperm(len(PAIRS), generator=generator)[:8] for _ in range(n_steps)]
    return [(rows, first[rows]) for rows in images]


def real_steps(config, model, accelerator, inputs=None, n_steps=N_STEPS):
    """The state after steps of `train_step`, and the values that each returned."""
    inputs = inputs or prepare(model, PAIRS)
    state = set_up(model.train(), inputs, config, accelerator, N_STEPS)
    state.loss_fn.to(model.log_logit_scale.dtype)
    n, rank = accelerator.num_processes, accelerator.process_index
    values = []
    for rows in rows_of_steps(n_steps):
        values.append(train_step(state, inputs[tuple(part.chunk(n)[rank] for part in rows)]))
    return state, values


def plain_steps(config, model, inputs=None, n_steps=N_STEPS, n_processes=1, bf16=False, **built):
    """The loss after such steps, and the features, labels and terms of each.

    Args:
        config: of the run, with the learning rate and the weight of the penalty of `settings`.
        model: the initial model, which is trained.
        inputs: of the pairs.
        n_steps: of `N_STEPS`.
        n_processes: processes whose rows and dropout are imitated.
        bf16: precision of the encoders.
        built: what the penalty is built from.
    """
    inputs = inputs or prepare(model, PAIRS)
    teacher = copy.deepcopy(model).eval()
    model.train()
    is_mine = config.penalty == "mine"
    if is_mine:
        built["dims"] = model.dim, model.backbone.dim_image_pooled, model.backbone.dim_text_pooled
    torch.manual_seed(3)
    built |= dict(kappa_e=config.kappa_e, sample=config.sample, contrastive=config.contrastive)
    loss_fn = CIBRLoss(0.1, config.penalty, **config.penalty_options, **built)
    loss_fn.to(model.log_logit_scale.dtype)
    trained = [*model.parameters(), *loss_fn.contrastive.parameters()]
    matrices = {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay}
    others = {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0}
    adam = torch.optim.AdamW([matrices, others], lr=1e-3, betas=(0.9, 0.98))
    warm_up = 0.15 if model.kind == "frozen" else 0.45
    schedule = OneCycleLR(adam, 1e-3, N_STEPS, pct_start=warm_up, cycle_momentum=False)
    seen = []
    for step, rows in enumerate(rows_of_steps(n_steps)):
        seed = 3 + 1_000_003 * (step + 1)
        parts = []
        for rank in range(n_processes):
            torch.manual_seed(seed + 7_919 * rank)
            own = inputs[tuple(part.chunk(n_processes)[rank] for part in rows)]
            parts += encoded(config, model, inputs, own, loss_fn.needs, bf16)
        batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        batch["generator"] = torch.Generator().manual_seed(seed)
        if "teacher_logits" in loss_fn.needs:
            batch["teacher_logits"] = 105 * cosines(teacher, inputs[rows])
        if is_mine:
            loss_fn.update(**{name: x for name, x in batch.items() if name != "labels"})
        ramp = min(max(3 * step / N_STEPS - 1, 0), 1)
        loss_fn.beta = 0.1 * (1 if config.penalty in ("anchor", "rafa") else ramp)
        terms = loss_fn(**batch, logit_scale=model.log_logit_scale.exp())
        adam.zero_grad()
        sum(terms.values()).backward()
        clip_grad_norm_(trained, 1.0)
        adam.step()
        schedule.step()
        model.log_logit_scale.data.clamp_(max=math.log(100))
        seen.append(batch | terms)
    return loss_fn, seen


def encoded(config, model, inputs, batch, needs, bf16):
    """Features and labels of each part of a process's rows, in one graph."""
    images, texts = batch.images, batch.texts
    if config.feature_noise:
        images = images + 0.3 * inputs.images.std(0) * torch.randn_like(images)
        texts = (texts[0] + 0.3 * inputs.texts[0].std(0) * torch.randn_like(texts[0]),)
    parts = []
    for rows in torch.arange(len(images)).split(config.micro_batch_size or len(images)):
        # Weights are cast again for each part; from one cast, gradients would be summed in bf16.
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
            image = model.encode_images(images[rows])
            text = model.encode_texts(*(part[rows] for part in texts))
            named = dict(image_features=image.features, text_features=text.features)
            named |= dict(image_pooled=image.pooled.detach(), text_pooled=text.pooled.detach())
            if "image_projected" in needs:
                named["image_projected"] = model.backbone.image_head(image.pooled)
                named["text_projected"] = model.backbone.text_head(text.pooled)
        named = {name: value.float() if bf16 else value for name, value in named.items()}
        parts.append(named | {"labels": batch.labels[rows]})
    return parts


@torch.no_grad()
def cosines(model, batch):
    return model.encode_images(batch.images).features @ model.encode_texts(*batch.texts).features.T
