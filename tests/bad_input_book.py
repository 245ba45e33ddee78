"""Bad input to the study's worlds, estimators, probes, attribution, sweeps and data."""

import math
from functools import partial

import torch
from helpers import noise_pairs

from cibr import DualEncoder
from cibr_book.embeddings import attribution, probes
from cibr_book.embeddings import geometry as embeddings
from cibr_book.experiments.corruptions import Corruption, corrupt, half_in_style
from cibr_book.experiments.glyph_benchmarks import load_glyph_benchmark
from cibr_book.experiments.plan import read_plan
from cibr_book.experiments.shifts import shifted
from cibr_book.experiments.suites import published
from cibr_book.worlds import estimators
from cibr_book.worlds import exact as worlds

DISCRETE = worlds.discrete_world()
GAUSSIAN = worlds.gaussian_world()
IMAGE = torch.full((12, 2), 0.5, dtype=torch.float64)
TEXT = IMAGE[:8]
SIGNS = torch.tensor([3.0, -1.0], dtype=torch.float64)
NAN = torch.full((2,), math.nan, dtype=torch.float64)
EYE = torch.eye(8, dtype=torch.float64)
SINGULAR = torch.ones(2, 2, dtype=torch.float64)
TASK = estimators.gaussian_task(1, 1.0)
X, Y = TASK.sample(40)
MAPS = torch.zeros(3, 2, 4, 4)

nats_of = partial(worlds.encoder_informations, DISCRETE)
bound = partial(worlds.residual_bound_nats, DISCRETE.joint)
noisy_nats = partial(worlds.embedding_informations, DISCRETE)
gaussian_nats = worlds.gaussian_information_nats


def probe(factor):
    return probes.probe_nats(torch.zeros(4, 1), factor, torch.arange(4) % 2 == 0)


def maps(texts=EYE[:3], noise=MAPS, weight=1.0):
    return attribution.bottleneck_maps(MAPS, texts, torch.nn.Identity(), noise, weight)


def no_feature_map():
    model = DualEncoder.tiny(["a"], dim=4, width=4)
    model.kind = "hub"
    attribution.split_image_tower(model)


CALLS = {
    "entropy: sum": (lambda: worlds.entropy_nats(IMAGE), "sum to 1, the sum is 12"),
    "entropy: NaN": (lambda: worlds.entropy_nats(NAN), "p must be probabilities"),
    "entropy: negative": (lambda: worlds.entropy_nats(NAN.new_tensor([2, -1])), "probabilities"),
    "table: rows": (lambda: nats_of(IMAGE[:3], TEXT), r"image_encoder.*\[12, k\]"),
    "table: sum": (lambda: nats_of(IMAGE, 2 * TEXT), "each row of text_encoder"),
    "table: negative": (lambda: nats_of(IMAGE * SIGNS, TEXT), "each row of image_encoder"),
    "backward: rows": (lambda: bound(IMAGE, IMAGE), r"backward must be \[8, k\]"),
    "confusions": (lambda: worlds.discrete_world((0.7,)), r"0.7.*confusions lie in \[0, 1/2\]"),
    "no value": (lambda: worlds.discrete_world(n_text=0), "n_text=0.*at least one value"),
    "correlations": (lambda: worlds.gaussian_world((1.0,)), r"must lie in \(0, 1\)"),
    "covariance": (lambda: gaussian_nats(SINGULAR, [0], [1]), "positive definite"),
    "conditional": (lambda: worlds.conditional_covariance(SINGULAR, [0], [1]), "definite"),
    "canonical": (lambda: worlds.canonical_correlations(SINGULAR, [0], [1]), "definite"),
    "blocks": (lambda: gaussian_nats(GAUSSIAN.covariance, [0, 1], [1]), "no index in common"),
    "noise": (lambda: worlds.linear_encoder_nats(GAUSSIAN, EYE, 0.0), "noise_variance must be"),
    "beta": (lambda: worlds.optimal_linear_encoder(GAUSSIAN, 0.0), "beta must be positive"),
    "cold": (lambda: worlds.train_discrete(DISCRETE, temperature=-1.0), "temperature must be"),
    "colder": (lambda: worlds.train_gaussian(GAUSSIAN, temperature=0.0), "temperature must be"),
    "embeddings": (lambda: noisy_nats(IMAGE[:3], 1.0), "3 embeddings but 12 images"),
    "kappa": (lambda: noisy_nats(IMAGE, math.inf), "kappa must be positive and finite"),
    "scores: shape": (lambda: estimators.nce_nats(EYE[:3]), r"be \[n, n\].*\[3, 8\]"),
    "scores: one": (lambda: estimators.nwj_nats(EYE[:1, :1]), "n at least 2"),
    "scores: NaN": (lambda: estimators.dv_nats(NAN.expand(2, 2)), "scores must be finite"),
    "samples: rows": (lambda: estimators.ksg_nats(X, Y[1:]), r"got \[40, 1\] and \[39, 1\]"),
    "samples: few": (lambda: estimators.estimate_nats(X, Y, ["InfoNCE"]), "n at least 256"),
    "samples: inf": (lambda: estimators.ksg_nats(X * math.inf, Y), "x must be finite"),
    "estimator": (lambda: estimators.fit_critic(X, Y, "InfoNSE"), "did you mean 'InfoNCE'"),
    "nats": (lambda: estimators.correlation_of(-1.0), "nats must be finite and at least 0"),
    "map": (lambda: TASK.seen_through("sine"), "unknown map 'sine'.*wiggly"),
    "probe: constant": (lambda: probe(torch.zeros(4).long()), "two values or more"),
    "probe: unseen": (lambda: probe(torch.arange(4)), "all of them among the fitted items"),
    "feature map": (no_feature_map, "feature maps of a hub model are unknown"),
    "maps: shape": (lambda: maps(noise=MAPS[..., :2]), "pass one text per map"),
    "maps: texts": (lambda: maps(texts=EYE[:2]), "3 maps.*2 texts"),
    "maps: weight": (lambda: maps(weight=-1.0), "pass a positive price of a nat"),
}


UNIT = torch.eye(12)
LONG = "text_embeddings has 12 rows not of unit length"
ROWS = "12 images but 11 texts: pass one text per image"


CALLS |= {
    "alignment-unit": (lambda: embeddings.alignment(UNIT, 2 * UNIT), LONG),
    "gap-unit": (lambda: embeddings.modality_gap(UNIT, 2 * UNIT), LONG),
    "knn-unit": (lambda: embeddings.mutual_knn(UNIT, 2 * UNIT), LONG),
    "knn-rows": (lambda: embeddings.mutual_knn(UNIT, UNIT[:11]), ROWS),
    "cka-rows": (lambda: embeddings.linear_cka(UNIT, UNIT[:11]), ROWS),
    "uniformity": (lambda: embeddings.uniformity(UNIT[:1]), "no distances: pass at least two"),
    "published": (lambda: published("mine"), "no results of 'mine'; it has those of"),
}


def sweep(text):
    def read(tmp_path):
        (tmp_path / "sweep.yaml").write_text(text)
        read_plan(tmp_path / "sweep.yaml")

    return read


RUN = "results: rows.csv\nconditions: {all: {methods: [{method: CLIP, seed: [1, 1]}]}}"
CALLS |= {
    "sweep's entry": (sweep("result: rows.csv"), ".*sweep.yaml: 'result', did you mean 'results'"),
    "sweep without results": (sweep("conditions: {}"), "no entry 'results'"),
    "sweep's run twice": (sweep(RUN), "two runs have the settings .*: drop one"),
    "sweep's text": (sweep(RUN.replace("[1, 1]", "1e-3")), "seed: YAML reads '1e-3' as text"),
}
CASES = [(name, call, ValueError, message) for name, (call, message) in CALLS.items()]
CASES += [("no such sweep", lambda: read_plan("no.yaml"), FileNotFoundError, "no.yaml")]


def corruption(word="", **shares):
    return lambda: corrupt(noise_pairs(8), Corruption(spurious_word=word, **shares))


DATA = {
    "glyph set": (lambda: load_glyph_benchmark("glyph_cats"), "glyph_digits"),
    "glyph split": (lambda: load_glyph_benchmark("glyph_shapes", "train"), "train"),
    "shift": (lambda: shifted(noise_pairs(4), "blurr", 1), "blur"),
    "strength": (lambda: shifted(noise_pairs(4), "blur", 4), "strength"),
    "word of none": (corruption("cow"), "cow"),
    "word of all": (corruption("a"), "every image"),
    "near style": (corruption(spurious_style="negativ"), "negative"),
    "style": (lambda: half_in_style(noise_pairs(2), "sketch"), "sketch"),
    "shuffled": (corruption(shuffled_captions=2), "shuffled_captions"),
}
for share in (0, -0.1, 1.1, math.nan):
    DATA[f"fraction {share}"] = (corruption(fraction=share), "fraction")
CASES += [(name, call, ValueError, message) for name, (call, message) in DATA.items()]
