"""The penalty `anchor`: a von Mises-Fisher bound beyond a fixed statistic of the pooled features.

Importing this module adds it to `cibr.losses.PENALTIES`. It is ours, not the paper's.
"""

import torch
from torch import nn

from cibr.losses import PENALTIES, LossInputs
from cibr.losses.clip import Scalar
from cibr.losses.penalties import VMFBound


class Anchor(VMFBound):
    """Backward encoders centred at a fixed statistic U of the modality's own pooled features.

    It bounds I(Z_v;X_v|U_v), which is never below I(Z_v;X_v|U_v,X_t), the second term of
    I(Z_v;X_v|X_t) = I(Z_v;U_v|X_t) + I(Z_v;X_v|U_v,X_t). It does not bound the whole: at a report
    of 0 the first term may still be large. In effect it regularises the encoders towards the
    statistic. For wrong captions and frozen towers.

    Args:
        statistic: maps pooled features of both modalities to unit vectors u_v, u_t, such as
            `RegularisedCCA`.
        kappa_b: concentration of the backward encoders.
    """

    needs = ("image_pooled", "text_pooled")
    ramps = False
    bounded = "beyond_statistic"

    def __init__(self, statistic: nn.Module, kappa_b: float = 10.0):
        super().__init__(kappa_b)
        self.statistic = statistic.requires_grad_(False)

    def cosines(self, inputs: LossInputs) -> tuple[Scalar, Scalar]:
        """Mean cosine of the images, and of the texts, with the statistic."""
        with torch.no_grad():
            image_centre, text_centre = self.statistic(inputs.image_pooled, inputs.text_pooled)
        image_cosine = (inputs.image * image_centre.to(inputs.image)).sum(1).mean()
        return image_cosine, (inputs.text * text_centre.to(inputs.text)).sum(1).mean()


PENALTIES["anchor"] = Anchor
