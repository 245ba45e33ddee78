"""CIBR: the CLIP loss plus a penalty on modality-specific information.

    L_CIBR = L_CLIP + beta * R,   R = (I(Z_v; X_v | X_t) + I(Z_t; X_t | X_v)) / 2

after Ji et al. (2025, arXiv 2503.24182), who published no code. `cibr.losses.penalties` has the
bounds and estimates of R.
"""

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from cibr.losses import clip
from cibr.losses.clip import Features, Labels, Number, Scalar, check_finite, described
from cibr.losses.penalties import PENALTIES, LossInputs, Term
from cibr.losses.vmf import sample_vmf
from cibr.utils import check_known

MAX_BETA = 1e4  # above it, less than 1e-4 of the gradient is the contrastive loss's
_LENGTH_TOLERANCE = 1e-2  # of unit vectors; rounding to bfloat16 changes a norm by up to 4e-3
_NEEDED = {  # by need: the inputs, what they are, and whether they are square
    "pooled": (("image_pooled", "text_pooled"), "the input of the projection head", False),
    "projected": (("image_projected", "text_projected"), "the head's unnormalised output", False),
    "teacher": (("teacher_logits",), "a teacher's cosines times its logit_scale", True),
}


class _InfoNCE(Term):
    """CLIP's contrastive loss, exact and in bounded memory: see `clip_loss`."""

    def forward(self, inputs: LossInputs) -> Scalar:
        images, texts = inputs.z_image, inputs.z_text
        loss = clip.info_nce(images, texts, inputs.logit_scale, inputs.labels)
        self._lower_bound = math.log(len(images)) - loss.detach()
        return loss

    def reports(self) -> dict[str, Scalar]:
        """Log n - loss, a lower bound on I(Z_v;Z_t).

        With labels it is one if image and text are conditionally independent given the label and
        rows are drawn independently.
        """
        return {"mi_lower_bound_nats": self._lower_bound}


CONTRASTIVE: dict[str, type[Term]] = {"clip": _InfoNCE}


def beta_at(progress: Number, beta: Number) -> float:
    """Penalty weight at a given fraction of training: zero, then a linear ramp, then beta.

    It is zero for the first third, so that encoders trained from scratch first learn to tell pairs
    apart, rises linearly to beta at two thirds and is constant from there.

    Args:
        progress: fraction of training completed, in [0, 1].
        beta: final weight.

    Returns:
        The weight for this step.

    Raises:
        ValueError: progress is outside [0, 1], or beta outside its range.

    Examples:
        >>> [beta_at(progress, beta=0.05) for progress in (0, 0.5, 1)]
        [0.0, 0.025, 0.05]
    """
    if not isinstance(progress, Number) or not 0 <= progress <= 1:
        raise ValueError(f"progress must be in [0, 1], got {progress}: pass step / n_steps")
    return float(_checked_beta(beta)) * min(max(3 * progress - 1, 0.0), 1.0)


class CIBRLoss(nn.Module):
    """The CLIP loss plus beta times a penalty on modality-specific information.

    It returns the terms to be summed, as the losses of open_clip do; `reports` has diagnostics of
    the last batch.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(2, 8, 16, generator=generator)
        >>> image_features, text_features = nn.functional.normalize(features, dim=2)
        >>> loss_fn = CIBRLoss(beta=0.05)
        >>> terms = loss_fn(image_features.requires_grad_(), text_features, logit_scale=10.0)
        >>> sum(terms.values()).backward()
        >>> sorted(terms)
        ['clip_loss', 'penalty_loss']

    Source: the objective of Ji et al. (2025, arXiv 2503.24182).

    Args:
        beta: weight of the penalty, from 0 (plain CLIP, bit for bit) to 10,000; a plain attribute
            that a schedule may set before each step, see `beta_at`. With `vmf`, `crossfit` and
            `anchor`, compare settings by beta kappa_b A_d(kappa_e) / logit_scale.
        penalty: a name of `PENALTIES`, or a `Term`.
        kappa_e: concentration of the encoders e(z|x), with `sample` of the noise; without, it only
            scales the vMF penalties. The study's runs on photos use 8,192.
        sample: contrast samples of vMF(mu, kappa_e) instead of the means mu, in both train and eval
            mode. Noise without a penalty is `sample=True, beta=0`.
        contrastive: a name of `CONTRASTIVE`, or a `Term`.
        options: of the penalty, such as `kappa_b` (vmf, crossfit, anchor), `text_weight`,
            `statistic` (anchor) or `dims` (mine).

    Raises:
        ValueError: an unknown penalty, contrastive loss or option, or a number out of its range.
    """

    def __init__(
        self,
        beta: Number,
        penalty: str | Term = "vmf",
        *,
        kappa_e: Number = 1024.0,
        sample: bool = False,
        contrastive: str | Term = "clip",
        **options: Any,
    ):
        super().__init__()
        if not isinstance(kappa_e, Number) or not 0 < kappa_e <= 1e6:
            raise ValueError(f"kappa_e must be positive, at most 1e6, got {kappa_e}: try 10 to 1e4")
        if not isinstance(sample, bool):
            raise ValueError(f"sample must be True or False, got {sample!r}")
        self.beta = _checked_beta(beta)
        self.kappa_e = float(kappa_e)
        self.sample = sample
        self.penalty = _built("penalty", penalty, PENALTIES, options)
        self.contrastive = _built("contrastive loss", contrastive, CONTRASTIVE, {})

    @property
    def needs(self) -> set[str]:
        """The optional inputs that `forward` requires, see `Term`."""
        return {*self.penalty.needs, *self.contrastive.needs}

    def trained_parameters(self) -> list[nn.Parameter]:
        """The parameters for the caller's optimiser: not those that `update` trains."""
        terms = [t for t in (self.penalty, self.contrastive) if not t.trains_itself]
        return [parameter for term in terms for parameter in term.parameters()]

    def forward(
        self,
        image_features: Features,
        text_features: Features,
        logit_scale: Scalar | Number,
        labels: Labels | None = None,
        *,
        output_dict: bool = True,
        **optional: Any,
    ) -> dict[str, Scalar] | Scalar:
        """Computes the terms of the loss.

        Args:
            image_features: unit vectors mu_v, [n, d].
            text_features: unit vectors mu_t, [n, d].
            logit_scale: multiplier of the cosines, 1 / temperature.
            labels: as in `clip_loss`, [n].
            output_dict: return the terms by name instead of their sum.
            optional: by the names of `LossInputs`: `image_pooled` and `text_pooled`, the inputs of
                the projection heads, [n, p] and [n, q]; `image_projected` and `text_projected`,
                their outputs before normalisation, [n, d]; `teacher_logits`, [n, n]; `generator`,
                of the noise, which is drawn for all n rows at once.

        Returns:
            `clip_loss`, the contrastive term, and `penalty_loss`, beta times the penalty, scalars;
            or their sum.

        Raises:
            ValueError: as `clip_loss`; features whose norms differ from 1 by more than 0.01; a beta
                out of its range; a missing or unknown optional input.
        """
        beta = _checked_beta(self.beta)
        inputs = self._inputs(image_features, text_features, logit_scale, labels, optional)
        with torch.autocast(image_features.device.type, enabled=False):
            clip_loss = self.contrastive(inputs)
            with nullcontext() if beta else torch.no_grad():
                value = self.penalty(inputs)
        self._last_penalty = value.detach()
        terms = {"clip_loss": clip_loss, "penalty_loss": beta * value}
        return terms if output_dict else sum(terms.values())

    def reports(self) -> dict[str, Scalar]:
        """Diagnostics of the last batch, as detached scalars.

        Returns:
            `penalty_excess`, the penalty without its weight; its own reports, such as
            `residual_image_nats`; and, with `clip`, `mi_lower_bound_nats`.
        """
        excess = {"penalty_excess": self._last_penalty}
        return excess | self.penalty.reports() | self.contrastive.reports()

    def update(
        self,
        image_features: Features,
        text_features: Features,
        *,
        synchronise: Callable[[nn.Parameter], None] = lambda parameter: None,
        **optional: Any,
    ) -> None:
        """Trains what the penalty itself trains, such as MINE's critics; call it before `forward`.

        Args:
            image_features: unit vectors mu_v, [n, d].
            text_features: unit vectors mu_t, [n, d].
            synchronise: averages a parameter's gradient over processes.
            optional: as in `forward`.

        Raises:
            ValueError: features that `forward` rejects.
            FloatingPointError: a gradient that is not finite.
        """
        if self.penalty.trains_itself:
            fixed = image_features.detach(), text_features.detach()
            self.penalty.update(self._inputs(*fixed, 1.0, None, optional), synchronise)

    def _inputs(self, image, text, logit_scale, labels, optional: dict[str, Any]) -> LossInputs:
        """The checked inputs of the terms, with samples drawn if `sample` is set."""
        image, text, scale = clip.checked(image, text, logit_scale, labels, _LENGTH_TOLERANCE)
        for name in optional:
            check_known("input of CIBRLoss", name, LossInputs._fields[6:])
        self._check_needs(len(image), labels, optional)
        z_image, z_text = image, text
        if self.sample:
            generator = optional.get("generator")
            z_image = sample_vmf(image, self.kappa_e, generator)
            z_text = sample_vmf(text, self.kappa_e, generator)
        return LossInputs(image, text, z_image, z_text, scale, self.kappa_e, labels, **optional)

    def _check_needs(self, n: int, labels: Tensor | None, optional: dict[str, Any]) -> None:
        if "labels" in self.needs and labels is None:
            raise ValueError("this penalty compares rows of equal labels: pass labels, one a pair")
        for need in self.needs & _NEEDED.keys():
            names, what, is_square = _NEEDED[need]
            for name in names:
                value = optional.get(name)
                fits = isinstance(value, Tensor) and value.ndim == 2 and len(value) == n
                if not fits or (is_square and value.shape[1] != n):
                    shape = f"[{n}, {n if is_square else '_'}]"
                    raise ValueError(f"{name} must be {shape}, {what}; got {described(value)}")
                check_finite(**{name: value})


def check_options(penalty: type[Term], options: dict[str, Any]) -> None:
    """Raises ValueError for an option that the constructor of a penalty does not take."""
    known = inspect.signature(penalty).parameters
    for name in options:
        check_known(f"option of {penalty.__name__}", name, known)


def _built(what: str, term: str | Term, registry: dict[str, type[Term]], options: dict) -> Term:
    if isinstance(term, Term):
        if options:
            given = ", ".join(options)
            raise ValueError(f"options ({given}) are for a {what} by name: pass them to the object")
        return term
    check_known(what, term, registry)
    check_options(registry[term], options)
    return registry[term](**options)


def _checked_beta(beta: Number) -> Number:
    if not isinstance(beta, Number) or not 0 <= beta <= MAX_BETA:
        largest = f"{MAX_BETA:,.0f}, usually 0.001 to 1"
        raise ValueError(f"beta must be a number from 0 (CLIP) to {largest}; got {beta!r}")
    return beta
