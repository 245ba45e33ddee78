"""The penalty that the how-to on penalties adds: Gaussian encoders of one fixed variance."""

import torch

from cibr.losses import PENALTIES, LossInputs, Penalty


class Gaussian(Penalty):
    """Mean KL(N(z_v, s^2) || N(z_t, s^2)) in nats; symmetric, so it bounds both residuals.

    Args:
        variance: s^2 of both Gaussians, in every coordinate.
    """

    def __init__(self, variance: float = 0.1):
        super().__init__()
        self.variance = variance

    def forward(self, inputs: LossInputs) -> torch.Tensor:
        distances = (inputs.image - inputs.text).square().sum(1)
        return distances.mean() / (2 * self.variance)

    def reports(self, inputs: LossInputs) -> dict[str, torch.Tensor]:
        nats = self(inputs)
        return {"residual_image_nats": nats, "residual_text_nats": nats}


PENALTIES["gaussian"] = Gaussian
