"""The tables as chapters read them: tuned methods and paired differences."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from cibr.losses import CIBRLoss
from cibr_book.experiments.tables import beta_of, differences, in_points, read_table


def test_differences_are_from_the_best_clip_of_the_condition_paired_by_seed():
    # Three seeds of CLIP at two temperatures, and three of a penalty, of which CLIP has two.
    table = [("CLIP", "temperature 0.1", seed, 30 + seed, 50 + seed) for seed in (1, 2, 3)]
    table += [("CLIP", "temperature 0.2", seed, (40, 20, 20)[seed - 1], 90) for seed in (1, 2, 3)]
    table += [("ours", "", seed, 30, 53 + seed**2) for seed in (2, 3, 4)]
    names = ["method", "hyperparameters", "seed", "validation", "zero-shot"]
    rows = pd.DataFrame(table, columns=names).assign(condition="toys", beta=0.0)
    alone = rows[rows["method"] == "ours"].assign(condition="without CLIP")
    other = rows.assign(condition="other", validation=-rows["validation"])
    table = differences(pd.concat([rows, alone, other], ignore_index=True), ["zero-shot"])
    assert table["condition"].tolist() == ["toys", "toys", "other", "other"]
    assert table["hyperparameters"].tolist() == ["temperature 0.2", "", "temperature 0.1", ""]
    by_seed = [57 - 52, 62 - 53]  # CLIP has no seed 4
    ours = table.iloc[1]
    interval = stats.ttest_1samp(by_seed, 0).confidence_interval(0.95)
    found = ours[["difference", "low", "high", "n_seeds"]].tolist()
    assert found == pytest.approx([np.mean(by_seed), *interval, 2])
    text = in_points(table.iloc[:1], ["hyperparameters"]).loc["temperature 0.2", "zero-shot"]
    assert text == "+38.00 [+35.52, +40.48]"


def test_scores_of_a_table_are_means_in_per_cent_of_test_and_validation_columns(tmp_path):
    settings = '{"learning_rate": 0.3, "beta": 1, "corruption": {"fraction": 0.5}}'
    row = {"run": "0012", "commit": "12", "beta": 1, "configuration": settings}
    scores = """mini/mean of 7/accuracy@1 0.5
        mini/dtd10/accuracy@1 0.9
        mini/flickr8k/image_to_text_recall@1 0.1
        mini/flickr8k/text_to_image_recall@10 0.3
        mini/flickr8k/text_to_image_recall@2 0.9
        confirmation/coco/text_to_image_recall@1 0.9
        validation_image_to_text_recall@5 0.6
        validation_text_to_image_label_recall@1 0.8
        validation_recall@1 0.1"""
    row |= dict(line.strip().rsplit(" ", 1) for line in scores.splitlines())
    pd.DataFrame([row]).to_csv(tmp_path / "rows.csv", index=False)
    found = read_table(tmp_path / "rows.csv").iloc[0]
    assert found[["zero-shot", "recall", "validation"]].tolist() == pytest.approx([50, 20, 70])
    words = found[["run", "commit", "hyperparameters"]].tolist()
    assert words == ["0012", "12", "learning rate 0.3"]


def test_a_penalty_in_the_old_unit_has_the_price_of_its_beta_in_the_new():
    generator = torch.Generator().manual_seed(0)
    image, text = F.normalize(torch.randn(2, 5, 512, generator=generator), dim=2)
    old = {"penalty": "vmf", "beta": 0.7, "kappa_b": 3.0, "kappa_e": 8192.0, "temperature": 0.05}
    loss_fn = CIBRLoss(0.7, kappa_b=3.0, kappa_e=8192.0)
    cost = loss_fn(image, text, 20.0)["penalty_loss"]
    beta = beta_of(old, 0.7)
    of_beta = CIBRLoss(beta)(image, text, 20.0)["penalty_loss"]
    assert of_beta.item() == pytest.approx(cost.item(), rel=0.02)
    without = {name: value for name, value in old.items() if name != "kappa_b"}
    assert beta_of(without, 0.7) == pytest.approx(10 / 3 * beta, rel=0.03)
    learned = {name: value for name, value in old.items() if name != "temperature"}
    of_today = {name: value for name, value in old.items() if name != "kappa_e"}
    for kept in (learned, of_today, old | {"penalty": "mine"}, {"beta": 0.7}):
        assert beta_of(kept, 0.7) == 0.7
    assert beta_of({"dose": 0.2, "penalty": "vmf", "kappa_e": 8192}, 0.7) == 0.2


def test_the_ablation_has_the_betas_that_were_planned():
    rows = read_table("ablation.csv")
    rows = rows[rows["condition"].str.startswith("Flickr8k") & (rows["beta"] > 0)]
    assert set(rows["method"]) == {"vMF", "vMF, sampled", "cross-fitting", "MINE"}
    for _, betas in rows.groupby(["condition", "method"])["beta"]:
        assert sorted(betas.unique()) == [0.003, 0.012, 0.05, 0.2, 0.75, 3.0]
