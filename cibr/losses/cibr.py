"""CIBR: the CLIP loss plus a penalty on modality-specific information.

    L_CIBR = L_CLIP + beta * R,   R = (I(Z_v; X_v | X_t) + I(Z_t; X_t | X_v)) / 2

after Ji et al. (2025, arXiv 2503.24182), who published no code. `cibr.losses.penalties` has the
bounds and estimates of R.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from cibr.losses.baselines import hycd_loss, siglip_loss
from cibr.losses.clip import Features, Labels, Number, Scalar, checked, described, info_nce
from cibr.losses.critics import ResidualCritics, check_rows
from cibr.losses.penalties import NEEDS_POOLED, NEEDS_PROJECTED, PENALTIES, PenaltyInputs
from cibr.losses.vmf import sample_vmf
from cibr.utils import check_known

CONTRASTIVE = {"clip": info_nce, "siglip": siglip_loss, "hycd": hycd_loss}
LENGTH_TOLERANCE = 1e-2  # of unit vectors; rounding to bfloat16 changes a norm by up to 4e-3
MAX_BETA = (
    1e4  # above it, less than 1e-4 of the gradient is the contrastive loss's: no longer a trade-off
)


def beta_at(progress: Number, beta: Number) -> float:
    """Penalty weight at a given fraction of training: zero, then a linear ramp, then beta.

    It is zero for the first third, rises linearly to beta at two thirds and is constant from there:
    a penalty from
    the first step stalls training from scratch.

    Args:
        progress: fraction of training completed, in [0, 1].
        beta: final weight.

    Returns:
        The weight for this step.

    Raises:
        ValueError: progress is outside [0, 1].

    Examples:
        >>> [beta_at(progress, beta=0.05) for progress in (0, 0.5, 1)]
        [0.0, 0.025, 0.05]
    """
    if not 0 <= progress <= 1:
        raise ValueError(
            f"progress must be in [0, 1], got {progress}: pass step / n_steps, not the step"
        )
    return float(beta) * min(max(3 * progress - 1, 0.0), 1.0)


class CIBRLoss(nn.Module):
    """The CLIP loss plus beta times a penalty on modality-specific information.

    Examples:
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(2, 8, 16, generator=generator)
        >>> image_features, text_features = nn.functional.normalize(features, dim=2)
        >>> loss_fn = CIBRLoss(beta=0.05)
        >>> terms = loss_fn(image_features.requires_grad_(), text_features, logit_scale=10.0)
        >>> terms["loss"].backward()
        >>> bool(terms["loss"] == terms["clip_loss"] + terms["penalty_loss"])
        True

    The penalties, with the backward encoder b(z|x_t) of the bounds:

    ==================== =================================== ================
    ================================ penalty              b(z|x_t), or formula                needs
    when to use ==================== =================================== ================
    ================================ vmf                  vMF at the paired text embedding
    nothing          the default crossfit             vMF at a ridge prediction from the  nothing
    texts are unique, so that pairs
                         other half of the batch                              could be memorised
    anchor               vMF at a fixed statistic u(x_v) of  statistic,       pairs are few and
    towers frozen
                         the pooled features                 pooled features
    consistency          vMF at the mean of the other rows   several rows a   several renderings of
    one item;
                         with the label                      label            not the CIBR objective
    mine                 difference of two MINE estimates    dims and pooled  to follow the paper
                                                             features
    cosine               1 - cosine of the pairs             nothing          control
    alignment_uniformity Wang and Isola (2020)               nothing          control
    cyclip               Goel et al. (2022)                  nothing          control
    soft_targets         cross-entropy to soft targets from  pooled features  control
                         the pooled features
    rafa                 Yamaguchi et al. (2025)             projected        control
                                                             features
    ==================== =================================== ================
    ================================

    `vmf` and `crossfit` are upper bounds on R for every b (Fischer 2020, arXiv 2002.05379); at
    fixed concentrations they are kappa_b A_d(kappa_e) (1 - mean cosine with the centre of b) plus a
    constant, the floor. The floor measures a mismatch of concentrations, not information.

    `consistency`, a counterfactual-invariance penalty, is *not* the CIBR objective, and `anchor`
    bounds only one term of R; see `cibr.losses.penalties`.

    With `mine` the residual is estimated by `critics`, which the training loop must update
    alongside the encoders, with an optimiser of `critics.parameters()` on `critic_loss`. `critics`
    is None for every other penalty.

    Source: the objective of Ji et al. (2025, arXiv 2503.24182).

    Args:
        beta: weight of the penalty, from 0 (plain CLIP, bit for bit) to 10,000; a plain attribute
            that a schedule may set before each step, see `beta_at`.
        penalty: one of `PENALTIES`.
        kappa_e: concentration of the encoders e(z|x), also for the samples and the reported
            residuals.
        kappa_b: concentration of the backward encoders in the vMF penalties.
        text_weight: the texts' share of R, in [0, 1] (all vMF penalties and mine); 1/2 in its
            definition, 0 penalises only the images, 1 only the texts.
        sample: contrast samples of vMF(mu, kappa_e) instead of the means mu, in both train and eval
            mode. Noise without a penalty is `sample=True, beta=0`.
        contrastive: `clip`, `siglip` for the sigmoid loss, or `hycd` for CLIP's targets mixed with
            a teacher's.
        dims: widths of the embeddings and of the image and the text tower's pooled features (mine).
        statistic: maps pooled features of both modalities to the unit vectors u_v, u_t (anchor),
            such as `RegularisedCCA`.

    Raises:
        ValueError: an unknown penalty or contrastive loss, a number out of its range, `mine`
            without dims, or `anchor` without a statistic.
    """

    def __init__(
        self,
        beta: Number,
        penalty: str = "vmf",
        *,
        kappa_e: Number = 1024.0,
        kappa_b: Number = 10.0,
        text_weight: Number = 0.5,
        sample: bool = False,
        contrastive: str = "clip",
        dims: tuple[int, int, int] | None = None,
        statistic: nn.Module | None = None,
    ):
        super().__init__()
        check_known("penalty", penalty, PENALTIES)
        check_known("contrastive loss", contrastive, CONTRASTIVE)
        for name, kappa in (("kappa_e", kappa_e), ("kappa_b", kappa_b)):
            if not 0 < kappa < math.inf:
                raise ValueError(
                    f"{name} must be a positive, finite concentration, got {kappa}: try 10 to 1000"
                )
        if not 0 <= text_weight <= 1:
            raise ValueError(
                f"text_weight is the texts' share of the penalty, in [0, 1]; got {text_weight}"
            )
        if penalty == "mine" and (dims is None or len(dims) != 3):
            widths = "(image_features.shape[1], image_pooled.shape[1], text_pooled.shape[1])"
            raise ValueError(
                f"the penalty 'mine' needs the widths that critics read: pass dims={widths}"
            )
        if penalty == "anchor" and statistic is None:
            fit = "RegularisedCCA.fit(image_pooled, text_pooled, dim=image_features.shape[1])"
            raise ValueError(f"the penalty 'anchor' needs a statistic: pass statistic={fit}")
        self.beta, self.penalty, self.contrastive = _checked_beta(beta), penalty, contrastive
        self.kappa_e, self.kappa_b, self.text_weight = (
            float(kappa_e),
            float(kappa_b),
            float(text_weight),
        )
        self.sample = sample
        self.critics = ResidualCritics(*dims) if penalty == "mine" else None
        self.statistic = statistic if penalty == "anchor" else None

    def extra_repr(self) -> str:
        names = ("beta", "penalty", "kappa_e", "kappa_b", "text_weight", "sample", "contrastive")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(
        self,
        image_features: Features,
        text_features: Features,
        logit_scale: Scalar | Number,
        labels: Labels | None = None,
        *,
        image_pooled: Float[Tensor, "n p"] | None = None,
        text_pooled: Float[Tensor, "n q"] | None = None,
        image_projected: Features | None = None,
        text_projected: Features | None = None,
        teacher_logits: Float[Tensor, "n n"] | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Scalar]:
        """Computes the terms of the loss and the information estimates to report.

        Args:
            image_features: unit vectors mu_v, [n, d].
            text_features: unit vectors mu_t, [n, d].
            logit_scale: multiplier of the cosines, 1 / temperature.
            labels: as in `clip_loss`, [n].
            image_pooled: the image tower's features before the projection, [n, p] (`NEEDS_POOLED`).
            text_pooled: the same for the texts, [n, q].
            image_projected: image embeddings before normalisation, [n, d] (rafa).
            text_projected: the same for the texts, [n, d].
            teacher_logits: a teacher's cosines of images with texts times its own `logit_scale`,
                [n, n] (hycd).
            generator: random generator of the noise, drawn for all n rows at once (sample, rafa).

        Returns:
            Scalars. `clip_loss`, the contrastive term; `penalty_loss`, beta times the penalty;
            `loss`, the sum of both. Detached: `penalty_excess`, the penalty minus its floor; in
            nats `residual_image_nats` and `residual_text_nats`, for the vMF penalties upper bounds
            at the kappa_b fitted to the batch, for `mine` estimates that are not bounds, for the
            controls those of `vmf`; and `mi_lower_bound_nats`, log n - clip_loss (clip only), with
            labels a lower bound if image and text are conditionally independent given the label.

        Raises:
            ValueError: as `clip_loss`; features whose norms differ from 1 by more than 0.01; a beta
                out of its range; `consistency` without labels; missing features or teacher logits.
        """
        image, text, scale = checked(
            image_features, text_features, logit_scale, labels, LENGTH_TOLERANCE
        )
        z_image, z_text = self._sampled(image, text, generator)
        beta = _checked_beta(self.beta)
        with torch.autocast(image.device.type, enabled=False):
            taught = (
                [_checked_logits(teacher_logits, len(image))] if self.contrastive == "hycd" else []
            )
            clip_loss = CONTRASTIVE[self.contrastive](z_image, z_text, scale, labels, *taught)
            with torch.set_grad_enabled(beta > 0 and torch.is_grad_enabled()):
                pooled = dict(image_pooled=image_pooled, text_pooled=text_pooled)
                projected = dict(image_projected=image_projected, text_projected=text_projected)
                for features, needed_by in ((pooled, NEEDS_POOLED), (projected, NEEDS_PROJECTED)):
                    if self.penalty in needed_by:
                        check_rows(self.penalty, len(image), **features)
                inputs = dict(labels=labels, logit_scale=scale, settings=self, generator=generator)
                inputs = PenaltyInputs(
                    image, text, z_image, z_text, **pooled, **projected, **inputs
                )
                penalty = PENALTIES[self.penalty](inputs)
        value, *reports = penalty
        terms = {
            "clip_loss": clip_loss,
            "penalty_loss": beta * value,
            "loss": clip_loss + beta * value,
        }
        names = "penalty_excess", "residual_image_nats", "residual_text_nats"
        terms |= {name: report.detach() for name, report in zip(names, reports, strict=True)}
        if self.contrastive == "clip":
            terms["mi_lower_bound_nats"] = math.log(len(image)) - clip_loss.detach()
        return terms

    def critic_loss(
        self,
        image_features: Features,
        text_features: Features,
        *,
        image_pooled: Float[Tensor, "n p"],
        text_pooled: Float[Tensor, "n q"],
        generator: torch.Generator | None = None,
    ) -> Scalar:
        """The loss of the MINE critics, without a gradient to the encoders.

        Args:
            image_features: unit vectors mu_v, [n, d].
            text_features: unit vectors mu_t, [n, d].
            image_pooled: features before the projection, [n, p].
            text_pooled: the same for the texts, [n, q].
            generator: random generator of the noise (sample).

        Returns:
            Nats, a scalar with gradients to `critics.parameters()` only.

        Raises:
            ValueError: a penalty without critics, or features that `forward` rejects.
        """
        if self.critics is None:
            raise ValueError(
                f"the penalty {self.penalty!r} has no critics to train: it is a closed form"
            )
        features = image_features.detach(), text_features.detach()
        image, text, _ = checked(*features, 1.0, None, LENGTH_TOLERANCE)
        check_rows(self.penalty, len(image), image_pooled=image_pooled, text_pooled=text_pooled)
        z_image, z_text = self._sampled(image, text, generator)
        return self.critics.loss(
            {"image": z_image, "text": z_text}, {"image": image_pooled, "text": text_pooled}
        )

    def _sampled(
        self, image: Tensor, text: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        if not self.sample:
            return image, text
        return sample_vmf(image, self.kappa_e, generator), sample_vmf(text, self.kappa_e, generator)


def _checked_logits(logits: Tensor | None, n: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.shape != (n, n):
        rule = f"must be [{n}, {n}] for 'hycd', a frozen teacher's cosines times its logit_scale"
        raise ValueError(f"teacher_logits {rule}, got {described(logits)}")
    return logits.detach()


def _checked_beta(beta: Number) -> float:
    if not 0 <= beta <= MAX_BETA:
        raise ValueError(
            f"beta must be from 0 (plain CLIP) to {MAX_BETA:,.0f}, usually 0.001 to 1; got {beta}"
        )
    return beta
