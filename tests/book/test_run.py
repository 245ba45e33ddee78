"""One run of the ablation: what it measures, and that its measures are those of the committed rows."""

import math

import pandas as pd
import pytest
import torch
from helpers import noise_pairs

from cibr.data import Pairs, load_pairs
from cibr.models import DualEncoder
from cibr_book.run import describe_embeddings, leakage, residual_nats, train_and_measure
from cibr_book.tables import read_table

TINY = {
    "dataset": "glyphs",
    "model": "tiny",
    "penalty": "vmf",
    "sample": True,
    "kappa_e": 8192.0,
    "beta": 0.1,
}
TINY |= {
    "epochs": 1,
    "batch_size": 64,
    "temperature": 0.1,
    "seed": 1,
    "corruption": {"fraction": 0.02},
}
NAMES = [
    "run",
    "method",
    "condition",
    "beta",
    "seed",
    "configuration",
    "commit",
    "versions",
    "seconds",
]
NAMES += ["zero-shot", "image to text", "text to image", "validation", "hyperparameters"]


@pytest.mark.slow
def test_a_run_of_glyphs_has_the_columns_of_its_committed_rows(tmp_path):
    metrics = train_and_measure(TINY | {"suites": ["glyphs"]}, tmp_path / "run")
    rows = read_table()
    rows = rows[rows["condition"] == "glyphs"].dropna(axis=1, how="all").drop(columns=NAMES)
    assert set(metrics) == set(rows)
    assert metrics["validation_recall@10"] < 0.2 and math.isnan(metrics["steps_to_recall@10_0.3"])
    assert metrics["train_mi_lower_bound_nats"] - metrics[
        "validation_mi_lower_bound_nats"
    ] == pytest.approx(metrics["train_test_gap_nats"])
    assert (tmp_path / "run" / "history.csv").exists()


def test_the_residual_is_the_committed_function_of_the_cosine():
    rows = read_table().groupby("condition").head(1)
    dims = rows["condition"].str.startswith("glyphs").map({True: 128, False: 512})
    cosines = 1 - rows["validation_alignment"] / 2
    found = [residual_nats(cosine, dim) for cosine, dim in zip(cosines, dims, strict=True)]
    assert found == pytest.approx(rows["validation_residual_nats"].tolist(), rel=1e-4)


class Rigged(DualEncoder):
    """Embeds each image as its row of a table, and texts at random."""

    def __init__(self, images):
        torch.nn.Module.__init__(self)
        self.images = torch.nn.functional.normalize(images, dim=1)

    def embed(self, pairs):
        texts = torch.randn(self.images.shape, generator=torch.Generator().manual_seed(1))
        return self.images, torch.nn.functional.normalize(texts, dim=1)


@pytest.fixture
def rigged(monkeypatch):
    monkeypatch.setattr("cibr_book.run._embed", lambda model, pairs: model.embed(pairs))
    return Rigged


def test_leakage_is_the_share_of_a_factor_that_the_embedding_holds(rigged, monkeypatch):
    pairs = load_pairs("glyphs", "train").subset(range(0, 6000, 10))
    monkeypatch.setattr("cibr_book.run._sample", lambda pairs, n: pairs)
    dark = torch.tensor((pairs.factors["ink"] > pairs.factors["paper"]).to_numpy()).float()
    noise = torch.randn(len(pairs), 3, generator=torch.Generator().manual_seed(0))
    found = leakage(rigged(torch.cat([8 * dark[:, None] - 4, noise], dim=1)), pairs)
    assert found["leakage_image_polarity"] > 0.9 and abs(found["leakage_image_typeface"]) < 0.1
    assert {name.split("_")[0] for name in found} == {"leakage", "shared"}


def test_a_model_that_knows_nothing_of_the_texts_shares_nothing(rigged):
    images = torch.randn(56, 16, generator=torch.Generator().manual_seed(0))
    found = describe_embeddings(rigged(images), noise_pairs(56))
    assert found["mi_lower_bound_nats"] < 0 and found["alignment"] == pytest.approx(2, abs=0.2)


def test_photos_have_factors_of_one_modality_and_of_both(rigged):
    pairs = noise_pairs(60)
    captions = [[f"{'a man' if i % 2 else 'a cat'} {'very ' * (i % 7)}big"] for i in range(60)]
    pairs = Pairs("photos", "test", captions, pairs.keys, pairs.load)
    found = leakage(rigged(torch.randn(60, 4, generator=torch.Generator().manual_seed(0))), pairs)
    names = ["leakage_image_brightness", "leakage_image_colourfulness", "leakage_text_length"]
    assert sorted(found) == [*names, "shared_image_people", "shared_text_people"]
    assert all(pd.notna(value) for value in found.values())
