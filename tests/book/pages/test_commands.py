"""The commands that make the tables of the chapter on interpretability, on a few images."""

import pandas as pd
import pytest
import torch
from helpers import TEXTS, noise_pairs

from cibr import DualEncoder
from cibr.utils import project_root
from cibr_book.embeddings import interpretability_photos

RESULTS = project_root() / "data" / "results"


def test_photo_rows_compare_methods_seeds_and_maps_as_in_the_committed_tables(monkeypatch):
    pairs = noise_pairs(40, split="test")
    for name, value in {"SHOWN": [0, 1], "N_PHOTOS": 6, "N_NOISE": 8}.items():
        monkeypatch.setattr(interpretability_photos, name, value)
    models = []
    for seed in range(4):
        torch.manual_seed(seed)
        models.append(DualEncoder.tiny(TEXTS, dim=16, width=4).eval())
    rows = interpretability_photos.changed_answers([models[:2], models[2:]], pairs)
    values = pd.DataFrame(rows).set_index(["quantity", "case"])["value"]
    gained, lost, added = (values[key].item() for key in ("gained", "lost", "second minus first"))
    assert values["changed answers", "between methods, same seed"] == gained + lost
    assert added == pytest.approx(gained - lost, abs=1e-6)
    shown = {"CLIP": models[0], "CIBR vMF": models[2]}
    by_map, maps = interpretability_photos.explained_photos(shown, pairs)
    committed = pd.read_csv(RESULTS / "interpretability.csv")[["quantity", "case"]]
    assert pd.DataFrame([*rows, *by_map])[["quantity", "case"]].equals(committed)
    assert list(maps) == list(pd.read_csv(RESULTS / "interpretability_maps.csv", nrows=1))
    assert len(maps) == 2 * 2 * 16**2 and maps["nats"].min() > -1e-4
