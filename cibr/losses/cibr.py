"""CIBR: the CLIP loss plus a penalty on modality-specific information.

    L_CIBR = L_CLIP + beta * R,   R = (I(Z_v; X_v | X_t) + I(Z_t; X_t | X_v)) / 2

after Ji et al. (2025, arXiv 2503.24182), who published no code. `cibr.losses.penalties` has the
bounds and estimates of R. The default penalty is an alignment term, the mean cosine distance of the
pairs at the temperature of CLIP's loss, and the whole loss is

    >>> from cibr.losses.clip import plain_clip_loss  # two cross-entropies, in six lines
    >>> def cibr_loss(image, text, logit_scale, labels, beta):
    ...     penalty = logit_scale * (1 - (image * text).sum(1).mean())
    ...     return plain_clip_loss(image, text, logit_scale, labels) + beta * penalty

That is `CIBRLoss`:

    >>> generator = torch.Generator().manual_seed(0)
    >>> image, text = nn.functional.normalize(torch.randn(2, 6, 16, generator=generator), dim=2)
    >>> labels = torch.tensor([0, 1, 1, 2, 3, 4])  # rows 1 and 2 match each other's text, too
    >>> expected = cibr_loss(image, text, 20.0, labels, beta=0.05)
    >>> loss = CIBRLoss(beta=0.05)(image, text, 20.0, labels, output_dict=False)
    >>> torch.testing.assert_close(loss, expected)
"""

import inspect
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cibr.losses._blocked import blocked_clip_loss
from cibr.losses.clip import Features, Labels, Number, Scalar, checked_features
from cibr.losses.penalties import (
    PENALTIES,
    LossInputs,
    Penalty,
    check_concentration,
    noise_concentration,
)
from cibr.losses.vmf import sample_vmf
from cibr.utils import check_known, check_number, check_unit_vectors

LOSS_OPTIONS = {"kappa_e", "sample"}  # of CIBRLoss, whatever the penalty
MAX_BETA = 1e4  # above it, less than 1e-4 of the gradient is the contrastive loss's


def beta_at(progress: Number, beta: Number) -> float:
    """Penalty weight at a given fraction of training: zero, then a linear ramp, then beta.

    It is zero for the first third: encoders trained from scratch first learn to tell pairs apart.
    It then rises linearly to beta at two thirds and stays constant.

    Args:
        progress: fraction of training completed, in [0, 1].
        beta: final weight.

    Returns:
        The weight for this step.

    Raises:
        ValueError: progress is outside [0, 1]: pass step / n_steps.

    Examples:
        >>> [beta_at(progress, beta=0.05) for progress in (0, 0.5, 1)]
        [0.0, 0.025, 0.05]
    """
    check_number("progress", progress, low=0, high=1)
    ramp = 3 * progress - 1  # 0 at one third, 1 at two thirds
    return float(beta) * min(max(ramp, 0.0), 1.0)


class _LastBatch(NamedTuple):
    """What `reports` needs of the last batch, without gradients."""

    inputs: LossInputs
    clip_loss: Tensor
    penalty: Tensor  # without its weight


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
        beta: weight of the penalty, from 0 to 10,000; an attribute that a schedule may set before
            each step, see `beta_at`. At 0 the penalty has no part in the graph: the loss is CLIP's,
            bit for bit, even if the penalty is not finite. With `vmf` and `crossfit` one beta is
            the same price at every temperature and width; `mine` has another scale.
        penalty: a name of `PENALTIES`, or a `Penalty`.
        kappa_e: concentration of the encoders e(z|x), the noise that `sample` draws. None: 8 times
            the width of the embeddings with `sample`, which is one angle of noise at every width,
            and without it no noise. A number scales the vMF penalties by A_d(kappa_e) in any case.
        sample: contrast samples of vMF(mu, kappa_e) instead of the means mu, in both train and eval
            mode. Noise without a penalty is `sample=True, beta=0`.
        options: of the penalty, such as `kappa_b` (vmf, crossfit) or `dims` (mine).

    Raises:
        ValueError: an unknown penalty or option, or a number out of its range, also when `beta` is
            set later.
    """

    def __init__(
        self,
        beta: Number,
        penalty: str | Penalty = "vmf",
        *,
        kappa_e: Number | None = None,
        sample: bool = False,
        **options: Any,
    ):
        super().__init__()
        self.beta = beta
        self.kappa_e = check_concentration("kappa_e", kappa_e)
        self.sample = sample
        if isinstance(penalty, str):
            check_penalty(penalty, options)
            penalty = PENALTIES[penalty](**options)
        elif options:
            raise ValueError(f"{penalty!r} has its options already: give none")
        self.penalty = penalty
        self._last: _LastBatch | None = None

    @classmethod
    def for_model(
        cls,
        model: Any,
        beta: Number,
        penalty: str = "vmf",
        *,
        kappa_e: Number | None = None,
        sample: bool = False,
        **options: Any,
    ) -> "CIBRLoss":
        """Builds the loss for the embeddings of a model, from which `mine` takes its widths.

        Args:
            model: a `cibr.DualEncoder`, or an object with the attributes that the penalty reads,
                see `Penalty.for_model`.
            beta: weight of the penalty.
            penalty: a name of `PENALTIES`.
            kappa_e: concentration of the encoders, as in the constructor.
            sample: contrast samples instead of means.
            options: of the penalty.

        Raises:
            ValueError: as the constructor.
        """
        check_penalty(penalty, options)
        built = PENALTIES[penalty].for_model(model, **options)
        return cls(beta, built, kappa_e=kappa_e, sample=sample)

    @property
    def beta(self) -> float:
        """The weight of the penalty."""
        return self._beta

    @beta.setter
    def beta(self, value: Number) -> None:
        self._beta = check_number("beta", value, low=0, high=MAX_BETA)

    @property
    def needs(self) -> set[str]:
        """The optional arguments that `forward` requires, see `Penalty`."""
        return set(self.penalty.needs)

    def forward(
        self,
        image_features: Features,
        text_features: Features,
        logit_scale: Scalar | Number,
        labels: Labels | None = None,
        *,
        image_pooled: Float[Tensor, "n p"] | None = None,
        text_pooled: Float[Tensor, "n q"] | None = None,
        generator: torch.Generator | None = None,
        output_dict: bool = True,
    ) -> dict[str, Scalar] | Scalar:
        """Computes the terms of the loss.

        Args:
            image_features: unit vectors mu_v, [n, d].
            text_features: unit vectors mu_t, [n, d].
            logit_scale: multiplier of the cosines, 1 / temperature.
            labels: as in `clip_loss`, [n].
            image_pooled: inputs of the image head, [n, p], for penalties that need them.
            text_pooled: inputs of the text head, [n, q], for penalties that need them.
            generator: of the noise, which is drawn for all n rows at once.
            output_dict: return the terms by name instead of their sum.

        Returns:
            `clip_loss`, the contrastive term, and `penalty_loss`, beta times the penalty, scalars;
            or their sum.

        Raises:
            ValueError: as `clip_loss`; features whose lengths differ from 1 by more than 0.01; an
                input that the penalty needs and that is missing.
        """
        inputs = self._loss_inputs(
            image=image_features,
            text=text_features,
            logit_scale=logit_scale,
            labels=labels,
            image_pooled=image_pooled,
            text_pooled=text_pooled,
            generator=generator,
        )
        self._check_needs(inputs)
        detached = inputs.detached()
        with torch.autocast(image_features.device.type, enabled=False):
            clip_loss = blocked_clip_loss(
                inputs.z_image, inputs.z_text, inputs.logit_scale, inputs.labels
            )
            if self.beta:
                penalty = self.penalty(inputs)
                penalty_loss = self.beta * penalty
            else:
                # Only reported: in the graph, 0 times a penalty that is not finite would be NaN.
                penalty = self.penalty(detached)
                penalty_loss = torch.zeros_like(clip_loss)
        self._last = _LastBatch(detached, clip_loss.detach(), penalty.detach())
        if output_dict:
            return {"clip_loss": clip_loss, "penalty_loss": penalty_loss}
        return clip_loss + penalty_loss

    @torch.no_grad()
    def reports(self) -> dict[str, Scalar]:
        """Diagnostics of the last batch, as detached scalars.

        Returns:
            `penalty_excess`, the penalty without its weight, and its own reports, such as
            `residual_image_nats`; `pair_cosine_distance`, the mean of 1 - cos over the pairs, from
            0 to 2, and `modality_gap`, the distance of the mean embeddings of images and of texts,
            from 0 to 2; and, of CLIP's loss, `mi_lower_bound_nats`, log n - loss, a lower bound on
            I(Z_v;Z_t). With labels it holds if image and text are conditionally independent given
            the label and rows are drawn independently.

        Raises:
            ValueError: the loss has not been called yet.
        """
        if self._last is None:
            raise ValueError("reports are those of the last batch: call the loss first")
        inputs, clip_loss, penalty = self._last
        with torch.autocast(inputs.image.device.type, enabled=False):
            penalty_reports = self.penalty.reports(inputs)
        return {
            "penalty_excess": penalty,
            **penalty_reports,
            "pair_cosine_distance": 1 - (inputs.image * inputs.text).sum(1).mean(),
            "modality_gap": (inputs.image.mean(0) - inputs.text.mean(0)).norm(),
            "mi_lower_bound_nats": math.log(len(inputs.image)) - clip_loss,
        }

    def update(
        self,
        image_features: Features,
        text_features: Features,
        logit_scale: Scalar | Number = 1.0,
        labels: Labels | None = None,
        *,
        image_pooled: Float[Tensor, "n p"] | None = None,
        text_pooled: Float[Tensor, "n q"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Trains what the penalty itself trains, such as MINE's critics; call it before `forward`.

        Args:
            image_features: unit vectors mu_v, [n, d].
            text_features: unit vectors mu_t, [n, d].
            logit_scale: as in `forward`, where a penalty needs it.
            labels: as in `forward`, [n].
            image_pooled: as in `forward`, [n, p].
            text_pooled: as in `forward`, [n, q].
            generator: as in `forward`.

        Raises:
            ValueError: inputs that `forward` rejects.
        """
        if type(self.penalty).update is Penalty.update:  # the one that trains nothing
            return  # before sampling, so that `forward` gets the generator's first draws
        inputs = self._loss_inputs(
            image=image_features,
            text=text_features,
            logit_scale=logit_scale,
            labels=labels,
            image_pooled=image_pooled,
            text_pooled=text_pooled,
            generator=generator,
        )
        self._check_needs(inputs)
        with torch.autocast(image_features.device.type, enabled=False):
            self.penalty.update(inputs.detached())

    def _loss_inputs(
        self,
        *,
        image: Features,
        text: Features,
        logit_scale: Scalar | Number,
        labels: Labels | None,
        image_pooled: Tensor | None,
        text_pooled: Tensor | None,
        generator: torch.Generator | None,
    ) -> LossInputs:
        """The inputs of the terms, with samples drawn if `sample` is set."""
        image, text, logit_scale = checked_features(image, text, logit_scale, labels)
        check_unit_vectors(image_features=image, text_features=text)
        kappa_e = self.kappa_e
        z_image, z_text = image, text
        if self.sample:
            if kappa_e is None:
                kappa_e = noise_concentration(dim=image.shape[1])
            z_image = sample_vmf(image, kappa_e, generator)
            z_text = sample_vmf(text, kappa_e, generator)
        return LossInputs(
            image=image,
            text=text,
            z_image=z_image,
            z_text=z_text,
            logit_scale=logit_scale,
            kappa_e=kappa_e,
            labels=labels,
            image_pooled=image_pooled,
            text_pooled=text_pooled,
            generator=generator,
        )

    def _check_needs(self, inputs: LossInputs) -> None:
        """Raises ValueError for an input that the penalty needs and that the caller omitted."""
        missing = [name for name in self.penalty.needs if getattr(inputs, name) is None]
        if missing:
            raise ValueError(f"the loss needs {', '.join(missing)}: pass them in the call")


def check_penalty(penalty: str, options: Collection[str]) -> None:
    """Raises ValueError for an unknown penalty, or an option that its constructor does not take."""
    check_known("penalty", penalty, PENALTIES)
    known = inspect.signature(PENALTIES[penalty]).parameters
    for name in options:
        check_known(f"option of {penalty!r}", name, known)
