"""Bad input to the study's probes, attribution, sweeps and data."""

import math

import torch
from helpers import noise_pairs

from cibr import CIBRLoss, DualEncoder
from cibr_book.embeddings import attribution, probes
from cibr_book.experiments.corruptions import Corruption, corrupt, has_word, in_both_styles
from cibr_book.experiments.plan import read_plan
from cibr_book.experiments.training import grouped_rows
from cibr_book.worlds.discrete import information_nats
from cibr_book.worlds.estimators import estimate_nats

EYE = torch.eye(8, dtype=torch.float64)
MAPS = torch.zeros(3, 2, 4, 4)


def probe(factor):
    parts = torch.tensor([0, 1, 2, 2])
    return probes.leakage_items(torch.zeros(4, 1), {"v": factor}, parts)


def maps(weight):
    return attribution.bottleneck_maps(MAPS, EYE[:3], torch.nn.Identity(), MAPS, weight)


def no_feature_map():
    model = DualEncoder.tiny(["a"], dim=4, width=4)
    model.kind = "hub"
    attribution.split_image_tower(model)


def anchor_without_module():
    CIBRLoss(0.1, "anchor", statistic="cca")


CALLS = {
    "anchor: statistic": (anchor_without_module, "statistic of an anchor is a module"),
    "probe: constant": (lambda: probe(torch.zeros(4).long()), "two values or more"),
    "probe: unseen": (lambda: probe(torch.arange(4)), "all of them among the fitted items"),
    "feature map": (no_feature_map, "feature maps of a hub model are unknown"),
    "maps: weight": (lambda: maps(weight=-1.0), "pass a positive price of a nat"),
    "probabilities: sum": (lambda: information_nats(EYE), "sum to 1"),
    "probabilities: NaN": (lambda: information_nats(EYE * math.nan), "p must"),
    "probabilities: sign": (lambda: information_nats(EYE / 4 - 1 / 64), "p must"),
    "samples": (lambda: estimate_nats(EYE, EYE), "pass 256 or more"),
}


def sweep(text):
    def read(tmp_path):
        (tmp_path / "sweep.yaml").write_text(text)
        read_plan(tmp_path / "sweep.yaml")

    return read


RUN = "results: rows.csv\nconditions: {all: {methods: [{method: CLIP, seed: [1, 1]}]}}"
CALLS |= {
    "sweep's entry": (sweep("result: rows.csv"), ".*sweep.yaml: 'result', did you mean 'results'"),
    "sweep's condition": (
        sweep(RUN.replace("methods", "method")),
        "entry of 'all' in .*: 'method'",
    ),
    "sweep's draw": (sweep(RUN.replace("seed:", "draw: 3, seed:")), "the grid has 1 points"),
    "sweep without results": (sweep("conditions: {}"), "needs the entries"),
    "sweep's run twice": (sweep(RUN), "two runs have the settings .*: drop one"),
    "sweep's text": (sweep(RUN.replace("[1, 1]", "1e-3")), "seed: YAML reads '1e-3' as text"),
}
CASES = [(name, call, ValueError, message) for name, (call, message) in CALLS.items()]
CASES += [("no such sweep", lambda: read_plan("no.yaml"), FileNotFoundError, "no.yaml")]


def corruption(**shares):
    return lambda: corrupt(noise_pairs(8), Corruption(**shares))


DATA = {
    "word of none": (lambda: has_word(noise_pairs(8), "cow"), "cow"),
    "word of all": (lambda: has_word(noise_pairs(8), "a"), "every image"),
    "near style": (lambda: in_both_styles(noise_pairs(2), "tin"), "tint"),
    "style": (lambda: in_both_styles(noise_pairs(2), "sketch"), "sketch"),
    "shuffled": (corruption(shuffled_captions=2), "shuffled_captions"),
}
DATA["groups"] = lambda: grouped_rows(noise_pairs(4), 2, seed=0, epoch=0), "leave group_size at 1"
for share in (0, -0.1, 1.1, math.nan):
    DATA[f"fraction {share}"] = (corruption(fraction=share), "fraction")
CASES += [(name, call, ValueError, message) for name, (call, message) in DATA.items()]
