"""The commands that make the tables of two chapters, on sets of a few images."""

import pandas as pd
import pytest
import torch
from helpers import TEXTS, noise_pairs

from cibr import DualEncoder
from cibr.utils import project_root
from cibr_book import interpretability_photos, probes, stimuli, theory_glyphs

RESULTS = project_root() / "data" / "results"


def test_a_run_on_glyphs_leaves_the_rows_of_the_committed_table(monkeypatch):
    committed = pd.read_csv(RESULTS / "theory_glyphs.csv")
    monkeypatch.setattr(theory_glyphs, "PROBES", {"linear": 0})
    monkeypatch.setattr(theory_glyphs, "CONDITIONS", ((0.05, 60, 1),))
    train, validation = (stimuli.varied_glyphs(n, seed=n) for n in (120, 40))
    codes = probes.factor_codes(train.factors)
    kept = {name: codes[name] for name in ("slant", "polarity")}
    monkeypatch.setattr(theory_glyphs, "factor_codes", lambda table: kept)
    settings = dict(temperature=0.05, batch_size=60, seed=0, epochs=1)
    rows = theory_glyphs.probe_run(train, validation, **settings)
    assert list(rows) == list(committed) and set(rows["factor"]) == set(kept)
    assert set(rows["layer"]) == set(committed["layer"])


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
