"""Bad input to the worlds and estimators: the type of the error and the argument that it names."""

import math
from functools import partial

import torch

from cibr_book.worlds import discrete, estimators, gaussian
from cibr_book.worlds.map import _draw_sample
from cibr_book.worlds.training import Settings

DISCRETE = discrete.discrete_world()
GAUSSIAN = gaussian.gaussian_world()
IMAGE = torch.full((12, 2), 0.5, dtype=torch.float64)
TEXT = IMAGE[:8]
SIGNS = torch.tensor([3.0, -1.0], dtype=torch.float64)
NAN = torch.full((2, 2), math.nan, dtype=torch.float64)
EYE = torch.eye(8, dtype=torch.float64)
SINGULAR = torch.ones(2, 2, dtype=torch.float64)
X, Y = estimators.gaussian_pairs(1, 1.0, 40)

nats_of = partial(discrete.encoder_informations, DISCRETE)
bound = partial(discrete.residual_bound_nats, DISCRETE.joint)
noisy_nats = partial(discrete.embedding_informations, DISCRETE)

CALLS = {
    "probabilities: sum": (lambda: discrete.information_nats(IMAGE), "sum to 1"),
    "probabilities: NaN": (lambda: discrete.information_nats(NAN), "p must"),
    "probabilities: sign": (lambda: discrete.information_nats(SIGNS[None]), "p must"),
    "table: rows": (lambda: nats_of(IMAGE[:3], TEXT), "image_encoder"),
    "table: sum": (lambda: nats_of(IMAGE, 2 * TEXT), "text_encoder"),
    "table: negative": (lambda: nats_of(IMAGE * SIGNS, TEXT), "image_encoder"),
    "backward: rows": (lambda: bound(IMAGE, IMAGE), "backward"),
    "confusions": (lambda: discrete.discrete_world((0.7,)), "confusions"),
    "no value": (lambda: discrete.discrete_world(n_text=0), "n_text"),
    "batch": (lambda: discrete.PopulationLoss(DISCRETE, 5), "batch_size"),
    "embeddings": (lambda: noisy_nats(IMAGE[:3], 1.0), "embeddings"),
    "kappa": (lambda: noisy_nats(IMAGE, math.inf), "kappa"),
    "correlations": (lambda: gaussian.gaussian_world((1.0,)), "correlations"),
    "covariance": (lambda: gaussian.gaussian_information_nats(SINGULAR, [0], [1]), "covariance"),
    "blocks": (lambda: gaussian.gaussian_information_nats(EYE, [0, 1], [1]), "blocks"),
    "noise": (lambda: gaussian.linear_encoder_nats(GAUSSIAN, EYE, 0.0), "noise_variance"),
    "beta": (lambda: gaussian.optimal_linear_encoder(GAUSSIAN, 0.0), "beta"),
    "temperature": (lambda: Settings(temperature=0.0), "temperature"),
    "pairs": (lambda: _draw_sample(1, 1.0, 0), "pairs"),
    "nuisance": (lambda: _draw_sample(64, 0.0, 0), "scale"),
    "scores: shape": (lambda: estimators.nce_nats(EYE[:3]), "scores"),
    "scores: one": (lambda: estimators.READINGS["NWJ"](EYE[:1, :1]), "at least 2"),
    "scores: NaN": (lambda: estimators.READINGS["MINE"](NAN), "scores"),
    "samples: rows": (lambda: estimators._fit_critic(X, Y[1:], "MINE"), "x and y"),
    "samples: few": (lambda: estimators.estimate_nats(X, Y), "at least 256"),
    "samples: inf": (lambda: estimators._fit_critic(X * math.inf, Y, "MINE", batch_size=8), "x "),
    "estimator": (lambda: estimators._fit_critic(X, Y, "InfoNSE"), "estimator"),
    "nats": (lambda: estimators.gaussian_pairs(1, -1.0, 4), "nats"),
}
CASES = [(name, call, ValueError, named) for name, (call, named) in CALLS.items()]
