"""What a run optimises and with what: rows of a batch, the loss, its critics, the optimiser, the schedule."""

from typing import Any

import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import OneCycleLR

from cibr.data import Pairs
from cibr.data.labels import text_labels
from cibr.inputs import Inputs
from cibr.losses import BASELINES, BaselineLoss, CIBRLoss
from cibr.models import DualEncoder
from cibr.train.config import RunConfig
from cibr.train.step import CriticSteps

WARM_UP = 0.15  # of the steps
CRITIC_LEARNING_RATE = 1e-3
PRETRAINED_SHARE = 0.1  # of the learning rate, for the blocks of a tower that are trained under new heads


def check_pairs(train: Pairs) -> None:
    """Refuses a set that has nothing to tell apart.

    Raises:
        ValueError: fewer than two pairs, or captions that are all equal.
    """
    if len(train) < 2:
        raise ValueError(f"{train.split} of {train.name} has {len(train)} pair: a contrast needs two at least")
    if len(torch.unique(text_labels(train))) < 2:
        raise ValueError(
            f"all captions of {train.split} of {train.name} are one, {train.texts()[0]!r}: "
            "a contrast needs two different ones at least"
        )


def check_siblings(config: RunConfig, inputs: Inputs) -> None:
    """Refuses a penalty on siblings where no two texts share a label.

    Raises:
        ValueError: the estimator `siblings` on a set where each picture has one text and each text one picture.
    """
    if config.estimator == "siblings" and len(torch.unique(inputs.labels)) == len(inputs.labels):
        raise ValueError(
            f"the estimator 'siblings' compares pictures of one text or texts of one picture, and "
            f"{inputs.pairs.split} of {inputs.pairs.name} has none: choose another estimator, such as 'crossfit'"
        )


def precision(config: RunConfig, accelerator: Accelerator) -> str:
    """The encoders' precision: the configuration's, or bf16 where `accelerate launch` was told so.

    Raises:
        ValueError: a precision that would need its gradients scaled.
    """
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"accelerate is set to mixed_precision {accelerator.mixed_precision!r}: it is 'no' or 'bf16', "
            "whose gradients need no scaling"
        )
    return "bf16" if "bf16" in (config.mixed_precision, accelerator.mixed_precision) else "no"


def rows_a_process(batch_size: int, n_pairs: int, accelerator: Accelerator) -> int:
    """Rows of a batch that each process takes; all of them take the same number."""
    world, wanted = accelerator.num_processes, min(batch_size, n_pairs)
    if wanted < world:
        raise ValueError(f"a batch of {wanted} pairs cannot be shared by {world} processes: use fewer processes")
    if batch_size % world and batch_size <= n_pairs:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared equally by {world} processes: "
            f"choose a multiple such as {batch_size // world * world or world}"
        )
    return wanted // world


def build_loss(
    model: DualEncoder, config: RunConfig, n_labels: int
) -> tuple[CIBRLoss | BaselineLoss, CriticSteps | None]:
    """The loss on so many labels and, if it has critics, their optimiser; the seed decides their weights."""
    if config.estimator in BASELINES:
        return BaselineLoss(config.estimator, config.beta, config.kappa_e), None
    torch.manual_seed(config.seed)
    backbone = model.backbone
    loss_fn = CIBRLoss(
        config.beta,
        config.estimator,
        kappa_e=config.kappa_e,
        kappa_b=config.kappa_b,
        sample=config.beta > 0,
        dims=(model.dim, backbone.dim_image_pooled, backbone.dim_text_pooled),
        text_weight=config.text_weight,
        stop_gradient=config.stop_gradient,
        n_labels=n_labels,
    ).to(model.log_logit_scale.device)
    if loss_fn.critics is None:
        return loss_fn, None
    optimizer = torch.optim.Adam(loss_fn.critics.parameters(), lr=CRITIC_LEARNING_RATE)
    return loss_fn, CriticSteps(optimizer, config.critic_steps)


def build_optimizer(
    model: DualEncoder, config: RunConfig, n_steps: int
) -> tuple[torch.optim.Optimizer, OneCycleLR]:
    """AdamW and one cycle of its learning rate."""
    groups = _groups(model, config)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
    highest = [group["lr"] for group in groups]
    schedule = OneCycleLR(optimizer, highest, max(2, n_steps), pct_start=WARM_UP, cycle_momentum=False)
    return optimizer, schedule


def _groups(model: DualEncoder, config: RunConfig) -> list[dict[str, Any]]:
    """Matrices decay; gains, biases, the temperature and a tower's trained blocks, which start good, do not."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    of_tower = [name for name in trained if name.startswith("backbone.image_top.")]
    blocks = [trained.pop(name) for name in of_tower]
    rate, new = config.learning_rate, trained.values()
    groups = [
        {"params": [p for p in new if p.ndim > 1], "weight_decay": config.weight_decay, "lr": rate},
        {"params": [p for p in new if p.ndim <= 1], "weight_decay": 0.0, "lr": rate},
        {"params": blocks, "weight_decay": 0.0, "lr": PRETRAINED_SHARE * rate},
    ]
    return [group for group in groups if group["params"]]
