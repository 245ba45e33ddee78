"""The penalties R of `CIBRLoss`: bounds on and estimates of modality-specific information.

    R is meant to be (I(Z_v; X_v | X_t) + I(Z_t; X_t | X_v)) / 2, in nats

A `Penalty` is a module whose `forward` takes the `LossInputs` of a batch and returns the scalar
that beta weights. To add one, subclass `Penalty` and pass an object to `CIBRLoss`, or enter the
class in `PENALTIES`, which makes it available by name.

`vmf` and `crossfit` are von Mises-Fisher bounds. For every backward encoder b,
E[log e(z|x_v) - log b(z|x_t)] >= I(Z_v; X_v | X_t), with equality for b = p(z|x_t). Take
e = vMF(mu_v, kappa_e), the noise with which information is measured, and b = vMF(centre, kappa_b).
The bound is then the sum of the penalty and a constant,

    penalty    kappa_b A_d(kappa_e) (1 - E <mu_v, centre>)
    constant   log(C_d(kappa_e) / C_d(kappa_b)) + (kappa_e - kappa_b) A_d(kappa_e)

with C_d the normaliser and A_d the mean resultant length of `cibr.losses.vmf`. The constant
measures only how far the concentrations differ and has no gradient, so it is dropped: the penalty
is an excess over the constant in nats, and not the information.

By default kappa_b = 1 / temperature, which is the concentration whose log-ratio the logits of CLIP
are. Where embeddings are not sampled they are their means, so A_d has no part in it. The penalty is
then (1 - E <mu_v, centre>) / temperature, and beta means the same at every temperature and width.

The inequality needs a centre that is a function of the text and of samples other than the pair. It
holds for the source of the pairs: in a data set where every text is unique, the text identifies its
image, and the bound can fall to its floor by memorising the pairs.

`mine` estimates I(Z_v; X_v) - I(Z_v; X_t) with critics, see `cibr.losses.critics`.

Source: the bounds of Fischer (2020, arXiv 2002.05379); Ji et al. (2025, arXiv 2503.24182) for MINE.
"""

from functools import cache
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.nn import functional as F

from cibr.losses.clip import Features, Labels, Number, Scalar
from cibr.losses.critics import MineNats, SeparableCritic
from cibr.losses.vmf import vmf_fit_kappa, vmf_mean_cosine, vmf_residual_nats
from cibr.utils import check_number

_DIM_HIDDEN = 128  # of MINE's critics
_RIDGE = 1.0  # in units of the mean eigenvalue, 1 / d, of the unit vectors' second moment
_mean_resultant_length = cache(vmf_mean_cosine)  # A_d(kappa_e), the same in every step


class LossInputs(NamedTuple):
    """A penalty's inputs from a batch of n pairs; those that the caller omits are None.

    Args:
        image: the embeddings mu_v, unit vectors [n, d], which a penalty acts on.
        text: the embeddings mu_t, unit vectors [n, d].
        z_image: what CLIP's loss contrasts, [n, d]: with `sample` draws around `image`, else the
            same as `image`.
        z_text: the same for the texts, [n, d].
        logit_scale: 1 / temperature, a scalar.
        kappa_e: concentration of the encoders e(z|x); None where embeddings are their means.
        labels: equal for pairs that match, [n].
        image_pooled: inputs of the image head, [n, p], without gradients.
        text_pooled: inputs of the text head, [n, q], without gradients.
        generator: of the noise.
    """

    image: Tensor
    text: Tensor
    z_image: Tensor
    z_text: Tensor
    logit_scale: Tensor
    kappa_e: Number | None
    labels: Tensor | None = None
    image_pooled: Tensor | None = None
    text_pooled: Tensor | None = None
    generator: torch.Generator | None = None

    def detached(self) -> "LossInputs":
        """The same inputs without gradients."""
        fields = [field.detach() if isinstance(field, Tensor) else field for field in self]
        return LossInputs(*fields)


class Penalty(nn.Module):
    """A term of the loss that `CIBRLoss` weights by beta.

    A penalty that trains parts of its own, such as `Mine`, overrides `update`, since nothing else
    trains them. It returns its optimiser's state from `get_extra_state` and restores it in
    `set_extra_state`, so that a resumed run is the same run.

    Attributes:
        needs: the optional arguments of `CIBRLoss.forward` that it reads: `labels`, `image_pooled`,
            `text_pooled`.
        ramps: whether its weight is raised from 0 in the course of a run, see `beta_at`.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    ramps: ClassVar[bool] = True

    @classmethod
    def for_model(cls, model: Any, **options: Any) -> "Penalty":
        """Builds the penalty for the embeddings of a model, as `CIBRLoss.for_model` does.

        Override it if the constructor needs something of the model, such as its widths.

        Args:
            model: a `cibr.DualEncoder`, or an object with the attributes that the penalty reads;
                by default none.
            options: arguments of the constructor.
        """
        return cls(**options)

    def forward(self, inputs: LossInputs) -> Scalar:
        """The scalar to be minimised, with gradients to the features of the inputs."""
        raise NotImplementedError

    def update(self, inputs: LossInputs) -> None:
        """Trains the penalty's own parts, before the step of the encoders; by default it has none.

        `CIBRLoss.update` calls it on every process of a run, with the same inputs.

        Args:
            inputs: the batch, without gradients.
        """

    def reports(self, inputs: LossInputs) -> dict[str, Scalar]:
        """Diagnostics of a batch, by name; names of information end in `_nats`.

        Only bounds on and estimates of I(Z_v; X_v | X_t) may be called `residual_*`.
        """
        return {}


class VMF(Penalty):
    """An alignment term: the backward encoders are centred at the paired embeddings.

    The penalty is the default: (1 - cos) / temperature, on average over the pairs. The bound is too
    loose for its nats to be informative, so none are reported.

    Args:
        kappa_b: concentration of the backward encoders; None: 1 / temperature, without a gradient
            to the temperature.

    Raises:
        ValueError: a kappa_b outside 0.001 to 1e6.
    """

    def __init__(self, kappa_b: Number | None = None):
        super().__init__()
        self.kappa_b = check_concentration("kappa_b", kappa_b)

    def cosines_with_centres(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        """Mean cosine of the images, and of the texts, with the centres of their b.

        A subclass with other centres overrides this. Here the centre of each embedding is its pair,
        so the two means are one number.
        """
        cosine = _mean_cosine(inputs.image, inputs.text)
        return cosine, cosine

    def forward(self, inputs: LossInputs) -> Scalar:
        """kappa_b A_d(kappa_e) (1 - mean cosine), the mean over both modalities."""
        image_cosine, text_cosine = self.cosines_with_centres(inputs)
        weight = inputs.logit_scale.detach() if self.kappa_b is None else self.kappa_b
        if inputs.kappa_e is not None:
            dim = inputs.image.shape[1]
            weight = weight * _mean_resultant_length(inputs.kappa_e, dim=dim).to(image_cosine)
        return weight * (1 - (image_cosine + text_cosine) / 2)


class Crossfit(VMF):
    """Backward encoders centred at a prediction from the other half of the batch.

    For unique texts, whose pairs could be memorised. The centre of a row is a ridge regression from
    the other modality's embeddings, fitted on the other half; rows of one label are in the same
    half. With independently drawn rows of different labels this is a bound as `vmf` is: the centre
    does not depend on the row's own image. There is no gradient to the centres.
    """

    def cosines_with_centres(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        """Mean cosine of the images, and of the texts, with their predicted centres."""
        image_centre = _crossfitted_directions(inputs.text, inputs.image, inputs.labels)
        text_centre = _crossfitted_directions(inputs.image, inputs.text, inputs.labels)
        return _mean_cosine(inputs.image, image_centre), _mean_cosine(inputs.text, text_centre)

    def reports(self, inputs: LossInputs) -> dict[str, Scalar]:
        """Upper bounds in nats, in expectation over batches, at the kappa_b that fits this one.

        They bound information in samples of vMF(mu, kappa_e), whether or not training draws them;
        kappa_e is 8 d where none was given.
        """
        dim = inputs.image.shape[1]
        kappa_e = noise_concentration(dim) if inputs.kappa_e is None else inputs.kappa_e
        cosines = torch.stack(self.cosines_with_centres(inputs))  # [2]: image, text
        exact_cosines = cosines.cpu().double().clamp(-1, 1)  # MPS has no float64
        # The mean cosine of a sample with the centre is A_d(kappa_e) times that of its mean.
        sample_cosines = _mean_resultant_length(kappa_e, dim=dim) * exact_cosines
        kappa_b = vmf_fit_kappa(sample_cosines, dim)
        nats = vmf_residual_nats(exact_cosines, kappa_e, kappa_b, dim)
        image_nats, text_nats = nats.to(cosines)
        return {"residual_image_nats": image_nats, "residual_text_nats": text_nats}


class Mine(Penalty):
    """The paper's estimator: a difference of two Donsker-Varadhan estimates, which is no bound.

    There are four critics, each modality's embeddings with each tower's pooled features. They are
    separable: all n^2 pairs of the batch are scored, and the mismatched ones are the samples of the
    product of the marginals. `update` trains them alongside the encoders with their own Adam; both
    are in the state dict.

    Args:
        dims: widths of the embeddings and of the image and the text tower's pooled features:
            (d, p, q).
        critic_steps: steps of the critics before each step of the encoders.
        critic_rate: learning rate of the critics.

    Raises:
        ValueError: critic_steps is not a whole number of 1 or more.
    """

    needs = ("image_pooled", "text_pooled")
    # The modalities of z and of x by critic: "text_image" is T(z_text, x_image).
    _sides: ClassVar = {
        "image_image": ("image", "image"),
        "image_text": ("image", "text"),
        "text_image": ("text", "image"),
        "text_text": ("text", "text"),
    }

    def __init__(
        self, dims: tuple[int, int, int], critic_steps: int = 1, critic_rate: float = 1e-3
    ):
        super().__init__()
        self.critic_steps = int(check_number("critic_steps", critic_steps, low=1, whole=True))
        dim, dim_image_pooled, dim_text_pooled = dims
        dims_pooled = {"image": dim_image_pooled, "text": dim_text_pooled}
        self.critics = nn.ModuleDict()
        self.averages = nn.ModuleDict()
        for name, (_, x_name) in self._sides.items():
            self.critics[name] = SeparableCritic(dim, dims_pooled[x_name], dim_hidden=_DIM_HIDDEN)
            self.averages[name] = MineNats()
        # Only `update` lets them have gradients: no other optimiser trains them.
        self.critics.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.critics.parameters(), lr=critic_rate)

    @classmethod
    def for_model(cls, model: Any, **options: Any) -> "Mine":
        """Builds the penalty with the widths of a model.

        Args:
            model: an object with `dim`, `dim_image_pooled` and `dim_text_pooled`, as a
                `cibr.DualEncoder` has them.
            options: arguments of the constructor; `dims` replaces the model's.
        """
        if "dims" not in options:
            options["dims"] = (model.dim, model.dim_image_pooled, model.dim_text_pooled)
        return cls(**options)

    def get_extra_state(self) -> dict[str, Any]:
        """The state of the critics' optimiser, for the state dict."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restores the critics' optimiser from the state dict."""
        self.optimizer.load_state_dict(state)

    def forward(self, inputs: LossInputs) -> Scalar:
        """The mean of both residuals, in nats, with gradients to the embeddings alone."""
        image_nats, text_nats = self._residuals(inputs)
        return (image_nats + text_nats) / 2

    def reports(self, inputs: LossInputs) -> dict[str, Scalar]:
        """Estimates of the residual information, in nats, not bounds; they may be negative."""
        image_nats, text_nats = self._residuals(inputs)
        return {"residual_image_nats": image_nats, "residual_text_nats": text_nats}

    def _residuals(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        """Estimates of I(Z_v; X_v | X_t) and of I(Z_t; X_t | X_v), in nats."""
        nats = self._nats(inputs)
        image_nats = nats["image_image"] - nats["image_text"]
        text_nats = nats["text_text"] - nats["text_image"]
        return image_nats, text_nats

    def update(self, inputs: LossInputs) -> None:
        """Steps of the critics, with fixed embeddings.

        Args:
            inputs: the batch, without gradients.
        """
        self.critics.requires_grad_(True)
        for _ in range(self.critic_steps):
            self.optimizer.zero_grad()
            nats = self._nats(inputs, update_average=True)
            loss = -sum(nats.values())  # the critics maximise their estimates
            loss.backward()
            self.optimizer.step()
        self.critics.requires_grad_(False)  # else the encoders' step would train them, too

    def _nats(self, inputs: LossInputs, update_average: bool = False) -> dict[str, Scalar]:
        """Each critic's estimate of I(Z; X), by name; pooled features get no gradient.

        Only an update moves the moving averages.
        """
        embeddings = {"image": inputs.z_image, "text": inputs.z_text}
        pooled = {"image": inputs.image_pooled, "text": inputs.text_pooled}
        nats = {}
        for name, critic in self.critics.items():
            z_name, x_name = self._sides[name]
            z = embeddings[z_name].to(critic.dtype)
            x = pooled[x_name].detach().to(critic.dtype)
            # Coordinates of unit variance: those of a unit vector have a mean square of 1 / d.
            z = z * z.shape[1] ** 0.5
            x = F.layer_norm(x, x.shape[1:])
            nats[name] = self.averages[name](critic(z, x), update_average)
        return nats


def noise_concentration(dim: int) -> float:
    """The default concentration of the noise, 8 d: one angle at every width, with A_d = 0.94."""
    return 8.0 * dim


def check_concentration(name: str, kappa: Number | None) -> Number | None:
    """Raises ValueError for a concentration outside 0.001 to 1e6; None, the default, passes."""
    return None if kappa is None else check_number(name, kappa, low=1e-3, high=1e6)


PENALTIES: dict[str, type[Penalty]] = {"vmf": VMF, "crossfit": Crossfit, "mine": Mine}


def _mean_cosine(a: Features, b: Features) -> Scalar:
    """The mean cosine of paired unit vectors, [n, d] each."""
    return (a * b).sum(1).mean()


@torch.no_grad()
def _crossfitted_directions(source: Features, target: Features, labels: Labels | None) -> Features:
    """Directions of rows predicted by ridge regression on the other half of the batch.

    Args:
        source: unit vectors of the other modality, [n, d].
        target: unit vectors to be predicted, [n, d].
        labels: as in `clip_loss`, [n]; None when all differ.

    Returns:
        Unit vectors, [n, d]; zeros where all rows have one label, so that the other half is empty.
    """
    dim = source.shape[1]
    is_even = _is_in_even_half(labels, source)
    predicted = torch.empty_like(target)
    for rows in (is_even, ~is_even):
        x = source[~rows]  # [m, d], the half that the regression is fitted on
        y = target[~rows]
        # The dual form has a matrix of the half's size, [m, m], not of the space's, [d, d].
        ridge = _RIDGE * len(x) / dim
        gram = x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype, device=x.device)
        predicted[rows] = source[rows] @ x.T @ torch.linalg.solve(gram, y)
    return F.normalize(predicted, dim=1)


def _is_in_even_half(labels: Labels | None, features: Features) -> Bool[Tensor, " n"]:
    """Which rows are in the first of two halves: those of every other label.

    Rows with equal labels are in the same half, so no row is predicted from its own label.
    """
    if labels is None:
        label_ranks = torch.arange(len(features), device=features.device)
    else:
        label_ranks = torch.unique(labels, return_inverse=True)[1]
    return label_ranks % 2 == 0
