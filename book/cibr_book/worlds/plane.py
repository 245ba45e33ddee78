"""The information plane of the discrete world: shared against residual information, by method.

Every method trained the networks of `train_discrete` for the same number of steps from the same
initial weights: one-hot factors, a hidden layer of 64 ReLU units and 8 outputs without biases, by
AdamW at a constant rate of 0.01 without weight decay, on 64 fresh pairs a step. Equal texts in a
batch are negatives. Methods with noise contrast one draw around each embedding of both towers; the
vMF penalties have kappa_b = 10 and kappa_e = 20. I(Z_v;X_t) and I(Z_v;X_v|X_t) were then measured
for the image tower's unit vectors with von Mises-Fisher noise of two concentrations, kappa, by
2,000 draws an image and exact mixture densities; methods that train with noise use the first. Rows
of the method `optimum` are the best that any embedding of this width can do at a noise: vectors
ascend I(Z_v;X_t) - beta I(Z_v;X_v|X_t). Those that depend on the shared factor S alone suffice: as
V is independent of S and the text, I(Z_v;X_t) <= I(Z_v;X_t|V) and I(Z_v;X_v) >= I(Z_v;S|V), and the
best single value of V does no worse. Seeds beyond the first eight count how often training with
noise fails.

All rows come from the code of the commits that they name.
"""

import pandas as pd

from cibr.losses.vmf import vmf_mean_cosine
from cibr.utils import project_root

TABLE = project_root() / "data" / "results" / "information_plane.csv"
_VMF = ("CIBR vMF", "CIBR vMF, sampled", "CIBR crossfit")
_DIM = 8


def plane_rows() -> pd.DataFrame:
    """The rows of information_plane.csv, with the vMF penalties' beta as `CIBRLoss` has it.

    In the file it is the weight of kappa_b A_d(kappa_e) (1 - cos); here it is that of
    (1 - cos) / temperature, with two digits. MINE's weighs nats, and that of `optimum` is a price
    of residual information.
    """
    rows = pd.read_csv(TABLE)
    cost = 10 * vmf_mean_cosine(20.0, _DIM).item()
    is_vmf = rows["method"].isin(_VMF)
    prices = rows["beta"] * cost * rows["temperature"]
    rows["beta"] = rows["beta"].mask(is_vmf, prices.map("{:.2g}".format).astype(float))
    return rows
