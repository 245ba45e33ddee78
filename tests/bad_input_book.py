"""Bad input to the study's worlds, estimators, probes, attribution and sweeps."""

import math

import pandas as pd
import torch
from helpers import picture

from cibr import DualEncoder
from cibr_book import attribution, embeddings, estimators, geometry, plots, probes, worlds
from cibr_book.plan import read_plan
from cibr_book.suites import published

DISCRETE, GAUSSIAN = worlds.discrete_world(), worlds.gaussian_world()
IMAGE, TEXT = (torch.full((n, 2), 0.5, dtype=torch.float64) for n in DISCRETE.joint.shape)
SINGULAR = torch.ones(2, 2, dtype=torch.float64)
X, Y = estimators.gaussian_task(1, 1.0).sample(40)
MAPS, UNIT, ZEROS = torch.zeros(3, 2, 4, 4), torch.eye(3), torch.zeros(3, dtype=torch.int64)
DELETED = (torch.zeros(3, 3, 4, 4), MAPS[:, 0], torch.nn.Identity())
HALF = torch.tensor([True, False, True, False])


def entropy(*p):
    return worlds.entropy_nats(torch.tensor(p, dtype=torch.float64))


def no_feature_map():
    model = DualEncoder.tiny(["a"], dim=4, width=4)
    model.kind = "clip"
    attribution.split_image_tower(model)


def probe(n, factor):
    return probes.probe_nats(torch.zeros(n, 1), factor, HALF)


def maps(noise=MAPS, weight=1.0):
    return attribution.bottleneck_maps(MAPS, UNIT, torch.nn.Identity(), noise, weight)


CALLS = {
    "entropy-sum": (
        lambda: entropy(0.5, 0.4),
        "p must be probabilities that sum to 1, the sum is 0.9",
    ),
    "entropy-nan": (lambda: entropy(0.5, math.nan), "p must be probabilities"),
    "table-rows": (
        lambda: worlds.encoder_informations(DISCRETE, IMAGE[:3], TEXT),
        r"image_encoder.*\[12, k\]",
    ),
    "table-sum": (
        lambda: worlds.encoder_informations(DISCRETE, IMAGE, 2 * TEXT),
        "each row of text_encoder",
    ),
    "confusions": (lambda: worlds.discrete_world((0.7,)), r"probabilities in \[0, 1/2\].*0.7"),
    "correlations": (lambda: worlds.gaussian_world((1.0,)), r"must lie in \(0, 1\)"),
    "covariance": (
        lambda: worlds.gaussian_information_nats(SINGULAR, [0], [1]),
        "positive definite",
    ),
    "blocks": (
        lambda: worlds.gaussian_information_nats(GAUSSIAN.covariance, [0, 1], [1]),
        "no index in common",
    ),
    "noise": (
        lambda: worlds.linear_encoder_nats(GAUSSIAN, torch.eye(8).double(), 0.0),
        "noise_variance must be",
    ),
    "beta": (lambda: worlds.optimal_linear_encoder(GAUSSIAN, 0.0), "beta must be positive"),
    "temperature": (
        lambda: worlds.train_discrete(DISCRETE, temperature=-1.0),
        "temperature must be positive",
    ),
    "embeddings": (
        lambda: worlds.embedding_informations(DISCRETE, IMAGE[:3], 1.0),
        "one row an image, 12, got 3",
    ),
    "kappa": (
        lambda: worlds.embedding_informations(DISCRETE, IMAGE, 0.0),
        "kappa must be positive",
    ),
    "scores-shape": (
        lambda: estimators.nce_nats(torch.zeros(3, 4)),
        r"scores must be \[n, n\].*\[3, 4\]",
    ),
    "scores-one": (lambda: estimators.nwj_nats(torch.zeros(1, 1)), "n at least 2"),
    "scores-nan": (
        lambda: estimators.dv_nats(torch.full((2, 2), math.nan)),
        "scores must be finite",
    ),
    "samples-rows": (
        lambda: estimators.estimate_nats(X, Y[:-1], ["InfoNCE"]),
        "row i of one drawn with row i",
    ),
    "samples-few": (lambda: estimators.estimate_nats(X, Y, ["InfoNCE"]), "at least 256"),
    "samples-inf": (lambda: estimators.ksg_nats(X * math.inf, Y), "x must be finite"),
    "estimator": (lambda: estimators.fit_critic(X, Y, "InfoNSE"), "did you mean 'InfoNCE'"),
    "nats": (lambda: estimators.correlation_of(-1.0), "nats must be finite and at least 0"),
    "map": (
        lambda: estimators.gaussian_task(1, 1.0).seen_through("sine"),
        "unknown map 'sine'.*wiggly",
    ),
    "probe-rows": (lambda: probe(3, torch.arange(4)), "one row for each value of factor"),
    "probe-constant": (lambda: probe(4, torch.zeros(4).long()), "two values or more"),
    "agreement": (
        lambda: embeddings.neighbour_agreement(ZEROS[:, None], ZEROS),
        "same value everywhere",
    ),
    "subsampling": (
        lambda: embeddings.subsampling_intervals(lambda i: {}, 10),
        "20 items at least",
    ),
    "feature-map": (no_feature_map, "no feature map that is known here"),
    "maps-shape": (lambda: maps(noise=MAPS[..., :2]), "do not fit: give one text a map"),
    "maps-weight": (lambda: maps(weight=-1.0), "give a positive price of a nat"),
    "deletion": (
        lambda: attribution.deletion_curve(*DELETED, 0.0, (0, 1.5)),
        "shares between 0 and 1",
    ),
}


EYE, FLAT = torch.eye(12), torch.ones(12, 12) / 12**0.5
LONG = "text_embeddings has norms up to 1 away from 1"
NO_ROWS = pd.DataFrame({"dataset": ["a"], "metric": ["accuracy@5"]})


def gallery():
    plots.retrieval_gallery([picture(0)], [["z"]], ["a"], torch.ones(1, 1))


CALLS |= {
    "alignment-unit": (lambda: geometry.alignment(EYE, 2 * EYE), LONG),
    "gap-unit": (lambda: geometry.modality_gap(EYE, 2 * EYE), LONG),
    "knn-unit": (lambda: geometry.mutual_knn(EYE, 2 * EYE), LONG),
    "knn-collapsed": (lambda: geometry.mutual_knn(EYE, FLAT), "text_embeddings are equal"),
    "cka-collapsed": (lambda: geometry.linear_cka(EYE, FLAT), "text_embeddings are equal"),
    "knn-rows": (lambda: geometry.mutual_knn(EYE, EYE[:11]), "12 images and 11 texts are no pairs"),
    "cka-rows": (lambda: geometry.linear_cka(EYE, EYE[:11]), "12 images and 11 texts are no pairs"),
    "knn-k": (lambda: geometry.mutual_knn(EYE, EYE, k=12), "k=12 does not fit 12 pairs"),
    "uniformity-one": (lambda: geometry.uniformity(torch.eye(1)), "two embeddings at least"),
    "published": (
        lambda: published("mine"),
        "published.csv has no results of 'mine'; it has those",
    ),
    "gallery": (gallery, "none of the captions of image 0 .* add 'z'"),
    "forest": (lambda: plots.forest(NO_ROWS), "none of the rows is accuracy@1 or a recall@1"),
}


def sweep(text):
    def read(tmp_path):
        (tmp_path / "sweep.yaml").write_text(text)
        read_plan(tmp_path / "sweep.yaml")

    return read


RUN = "results: rows.csv\nconditions: {all: {methods: [{method: CLIP, seed: [1, 1]}]}}"
CALLS |= {
    "sweep: an entry misspelt": (
        sweep("result: rows.csv"),
        "unknown entry of .*sweep.yaml: 'result', did you mean 'results'",
    ),
    "sweep: no results": (sweep("conditions: {}"), "'results' is missing"),
    "sweep: a run twice": (sweep(RUN), "two runs have the settings .*give each run once"),
    "sweep: text": (sweep(RUN.replace("[1, 1]", "1e-3")), "seed: YAML reads '1e-3' as text"),
}
CASES = [(name, call, ValueError, message) for name, (call, message) in CALLS.items()]
CASES += [("no such sweep", lambda: read_plan("no.yaml"), FileNotFoundError, "no.yaml")]
