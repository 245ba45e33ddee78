"""The penalties of `CIBRLoss`.

A `Penalty` is a module whose `forward` takes the `LossInputs` of a batch and returns the scalar
that beta weights. To add one, subclass `Penalty` and pass an object to `CIBRLoss`, or enter the
class in `PENALTIES`, which makes it available by name.

`vmf` and `crossfit` are von Mises-Fisher bounds. For every backward encoder b,
E[log e(z|x_v) - log b(z|x_t)] >= I(Z_v;X_v|X_t), with equality for b = p(z|x_t). The encoder is
e = vMF(mu_v, kappa_e), the noise with which information is measured, and b = vMF(centre, kappa_b).
The penalty is then kappa_b A_d(kappa_e) (1 - mean cosine with the centre), without a constant that
measures a mismatch of concentrations. The inequality needs a centre that is a function of the text
and of samples other than the pair. It holds for the source of the pairs: in a data set where every
text is unique, the text identifies its image, and the bound can fall to its floor by memorising the
pairs.

Source: the bounds of Fischer (2020, arXiv 2002.05379); Ji et al. (2025, arXiv 2503.24182) for MINE.
"""

from functools import cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.losses.clip import Features, Labels, Scalar
from cibr.losses.critics import MineNats, SeparableCritic
from cibr.losses.vmf import vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats
from cibr.utils import check_number

_DIM_HIDDEN = 128  # of MINE's critics
_RIDGE = 1.0  # times the mean eigenvalue of the unit vectors' second moment, 1 / d
_mean_cosine_of_noise = cache(vmf_mean_cosine)  # the same in every step


class LossInputs(NamedTuple):
    """A penalty's inputs from a batch of n pairs; those that the caller omits are None.

    Args:
        image: the embeddings mu_v, unit vectors [n, d], which a penalty acts on.
        text: the embeddings mu_t, [n, d].
        z_image: what CLIP's loss contrasts: with `sample` draws around `image`, else the same.
        z_text: the same of the texts.
        logit_scale: 1 / temperature.
        kappa_e: concentration of the encoders e(z|x).
        labels: equal for pairs that match, [n].
        image_pooled: inputs of the image head, [n, p], without gradients.
        text_pooled: inputs of the text head, [n, q].
        generator: of noise.
    """

    image: Tensor
    text: Tensor
    z_image: Tensor
    z_text: Tensor
    logit_scale: Tensor
    kappa_e: float
    labels: Tensor | None = None
    image_pooled: Tensor | None = None
    text_pooled: Tensor | None = None
    generator: torch.Generator | None = None

    def detached(self) -> "LossInputs":
        """The same without gradients."""
        return LossInputs(*(x.detach() if isinstance(x, Tensor) else x for x in self))


class Penalty(nn.Module):
    """A term of the loss that `CIBRLoss` weights by beta.

    A penalty that trains its own parts, such as `Mine`, also has a method `update(inputs)`; nothing
    else trains them.
    `CIBRLoss.update` calls it on every process of a run, with the same inputs, without gradients.

    Attributes:
        needs: the optional arguments of `CIBRLoss.forward` that it reads: `labels`, `image_pooled`,
            `text_pooled`.
        ramps: whether its weight is raised from 0 in the course of a run, see `beta_at`.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    ramps: ClassVar[bool] = True

    def forward(self, inputs: LossInputs) -> Scalar:
        """The scalar to be minimised, with gradients to the features of the inputs."""
        raise NotImplementedError

    def reports(self, inputs: LossInputs) -> dict[str, Scalar]:
        """The reports on a batch, by name; names of information end in `_nats`.

        Only bounds on and estimates of I(Z_v;X_v|X_t) may be called `residual_*`.
        """
        return {}


class VMF(Penalty):
    """Backward encoders centred at the paired embedding of the other modality; the default.

    Its bound is so loose that its nats mean little, so the distance of the pairs is reported.

    Args:
        kappa_b: concentration of the backward encoders.

    Raises:
        ValueError: a kappa_b outside 0.001 to 1e6.
    """

    def __init__(self, kappa_b: float = 10.0):
        super().__init__()
        self.kappa_b = check_number("kappa_b", kappa_b, 1e-3, 1e6)

    def cosines(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        """Mean cosine of the images, and of the texts, with the centres of their b."""
        cosine = _mean_cosine(inputs.image, inputs.text)
        return cosine, cosine

    def forward(self, inputs: LossInputs) -> Scalar:
        image_cosine, text_cosine = self.cosines(inputs)
        mean_cosine = _mean_cosine_of_noise(inputs.kappa_e, inputs.image.shape[1])
        weight = (self.kappa_b * mean_cosine).to(image_cosine)
        return weight * (1 - (image_cosine + text_cosine) / 2)

    def reports(self, inputs: LossInputs) -> dict[str, Scalar]:
        """`pair_cosine_distance`, the mean over pairs of 1 - cos, from 0 to 2, not in nats."""
        return {"pair_cosine_distance": 1 - _mean_cosine(inputs.image, inputs.text)}


class Crossfit(VMF):
    """Backward encoders centred at a prediction from the other half of the batch.

    For unique texts, whose pairs could be memorised. The centre of a row is a ridge regression from
    the other modality's embeddings, fitted on the other half; rows of one label are in the same
    half. With independently drawn rows of different labels this is a bound as `vmf` is: the centre
    does not depend on the row's own image. There is no gradient to the centres.
    """

    def cosines(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        image_centre = _crossfitted_means(inputs.text, inputs.image, inputs.labels)
        text_centre = _crossfitted_means(inputs.image, inputs.text, inputs.labels)
        return _mean_cosine(inputs.image, image_centre), _mean_cosine(inputs.text, text_centre)

    def reports(self, inputs: LossInputs) -> dict[str, Scalar]:
        """Upper bounds in nats, in expectation over batches, at the kappa_b that fits this one.

        They bound information in samples of vMF(mu, kappa_e), whether or not training draws them.
        """
        kappa_e, dim = inputs.kappa_e, inputs.image.shape[1]
        cosines = torch.stack(self.cosines(inputs))
        exact = cosines.cpu().double().clamp(-1, 1)  # MPS has no float64
        kappa_b = vmf_fit_kappa(_mean_cosine_of_noise(kappa_e, dim) * exact, dim)
        image_nats, text_nats = vmf_residual_nats(exact, kappa_e, kappa_b, dim).to(cosines)
        return {"residual_image_nats": image_nats, "residual_text_nats": text_nats}


class Mine(Penalty):
    """The paper's estimator: a difference of two Donsker-Varadhan estimates, which is no bound.

    There are four critics, each modality's embeddings with each tower's pooled features. They are
    separable: all n^2 pairs of the batch are scored, and the mismatched ones are the samples of the
    product of the marginals. `update` trains them alongside the encoders with their own Adam; both
    are in the state dict.

    Args:
        dims: widths of the embeddings and of the image and the text tower's pooled features.
        critic_steps: steps of the critics before each step of the encoders.
        critic_rate: learning rate of the critics.
    """

    needs = ("image_pooled", "text_pooled")

    def __init__(
        self, dims: tuple[int, int, int], critic_steps: int = 1, critic_rate: float = 1e-3
    ):
        super().__init__()
        self.critic_steps = critic_steps
        dim, dim_image, dim_text = dims
        self.critics, self.averages = nn.ModuleDict(), nn.ModuleDict()
        for z in ("image", "text"):
            for x, dim_pooled in (("image", dim_image), ("text", dim_text)):
                self.critics[f"{z}_{x}"] = SeparableCritic(dim, dim_pooled, _DIM_HIDDEN)
                self.averages[f"{z}_{x}"] = MineNats()
        self.critics.requires_grad_(False)  # but in `update`: no other optimiser trains them
        self.optimizer = torch.optim.Adam(self.critics.parameters(), lr=critic_rate)

    def get_extra_state(self) -> dict:
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict) -> None:
        self.optimizer.load_state_dict(state)

    def forward(self, inputs: LossInputs) -> Scalar:
        reports = self.reports(inputs)
        return (reports["residual_image_nats"] + reports["residual_text_nats"]) / 2

    def reports(self, inputs: LossInputs) -> dict[str, Scalar]:
        """Estimates of the residual information, in nats, not bounds; they may be negative."""
        nats = self._nats(inputs)
        return {
            "residual_image_nats": nats["image_image"] - nats["image_text"],
            "residual_text_nats": nats["text_text"] - nats["text_image"],
        }

    def update(self, inputs: LossInputs) -> None:
        """Steps of the critics, with fixed embeddings.

        Args:
            inputs: the batch, without gradients.
        """
        for _ in range(self.critic_steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.critics.requires_grad_(True)
            (-sum(self._nats(inputs, is_update=True).values())).backward()
            self.critics.requires_grad_(False)
            self.optimizer.step()

    def _nats(self, inputs: LossInputs, is_update: bool = False) -> dict[str, Scalar]:
        """Each critic's estimate, on inputs of unit variance; pooled features get no gradient.

        Only an update moves the moving averages.
        """
        embeddings = {"image": inputs.z_image, "text": inputs.z_text}
        pooled = {"image": inputs.image_pooled, "text": inputs.text_pooled}
        nats = {}
        for name, critic in self.critics.items():
            z_side, x_side = name.split("_")
            dtype = critic.f[0].weight.dtype
            z = embeddings[z_side].to(dtype) * embeddings[z_side].shape[1] ** 0.5
            x = F.layer_norm(pooled[x_side].detach().to(dtype), pooled[x_side].shape[1:])
            nats[name] = self.averages[name](critic(z, x), is_update)
        return nats


PENALTIES: dict[str, type[Penalty]] = {"vmf": VMF, "crossfit": Crossfit, "mine": Mine}


def _mean_cosine(a: Features, b: Features) -> Scalar:
    """The mean cosine of paired unit vectors, [n, d] each."""
    return (a * b).sum(1).mean()


@torch.no_grad()
def _crossfitted_means(source: Features, target: Features, labels: Labels | None) -> Features:
    """Directions of rows predicted by ridge regression on the other half of the batch.

    Args:
        source: unit vectors of the other modality, [n, d].
        target: unit vectors to be predicted, [n, d].
        labels: as in `clip_loss`, [n]; None when all differ. Rows with equal labels are in the same
            half, so no row is predicted from its own label.

    Returns:
        Unit vectors, [n, d].
    """
    n, dim = source.shape
    groups = torch.arange(n, device=source.device)
    if labels is not None:
        groups = torch.unique(labels, return_inverse=True)[1]
    is_first = groups % 2 == 0
    predicted = torch.empty_like(target)
    for half in (is_first, ~is_first):
        x, y = source[~half], target[~half]
        # Ridge regression in the dual form: a matrix of the half's size, not of the space's.
        ridge = _RIDGE * max(1, len(x)) / dim
        gram = x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype, device=x.device)
        predicted[half] = source[half] @ x.T @ torch.linalg.solve(gram, y)
    return F.normalize(predicted, dim=1)
