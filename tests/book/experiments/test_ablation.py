"""The residual information that is measured after training."""

import pytest
import torch
from helpers import noise_pairs
from torch.nn import functional as F

from cibr.losses.vmf import vmf_mean_cosine
from cibr.models.dual_encoder import Encoded
from cibr.models.inputs import prepare
from cibr_book.experiments import ablation
from cibr_book.experiments.tables import read_table


def pairs_that_share(noise):
    """Embeddings of 400 pairs, a linear function of the other's pooled features and noise."""
    generator = torch.Generator().manual_seed(0)
    shared, own, other = (torch.randn(400, 6, generator=generator) for _ in range(3))
    basis = torch.randn(2, 6, 16, generator=generator)
    z = [F.normalize(shared @ basis[0] + noise * x @ basis[1], dim=1) for x in (own, other)]
    pooled = [torch.cat([shared, x], 1) for x in (own, other)]
    return [Encoded(*of) for of in zip(z, pooled, strict=True)]


def test_the_bound_grows_with_what_only_one_modality_knows():
    little, some, much = (ablation.residual_nats(*pairs_that_share(noise)) for noise in (0, 0.3, 1))
    for kappa in ablation.KAPPAS:
        name = f"residual_bound_{kappa}"
        assert 0 <= little[name] < 0.6 * some[name] < 0.5 * much[name]
    high, low = (much[f"residual_bound_{kappa}"] for kappa in ablation.KAPPAS)
    assert high > low
    assert much["residual_mine"] > little["residual_mine"] + 0.3


def test_features_of_other_pairs_explain_less():
    pairs = pairs_that_share(0.3)
    strangers = [Encoded(of.features, of.pooled.roll(1, 0)) for of in pairs]
    bound = f"residual_bound_{ablation.KAPPAS[0]}"
    assert ablation.residual_nats(*strangers)[bound] > 1.4 * ablation.residual_nats(*pairs)[bound]


@pytest.mark.parametrize("kind", ["tiny", "frozen"])
def test_an_image_is_paired_with_its_first_text(build, kind, monkeypatch):
    monkeypatch.setattr(ablation, "_AT_ONCE", 4)  # in three batches
    model = build(kind)
    inputs = prepare(model, noise_pairs(10, n_captions=3))
    image, text = ablation.first_pairs(model, inputs)
    own = model.embed_texts([of[0] for of in inputs.pairs.captions])
    torch.testing.assert_close(text.features, own)
    assert len(image.features) == 10


def test_claims_are_of_the_weight_that_validation_chooses():
    rows = read_table("ablation.csv")
    rows = rows[rows["condition"].str.startswith("Flickr8k") & (rows["method"] != "noise only")]
    tests = ablation.claim_tests(rows)
    counts = tests.groupby("hypothesis")["outcome"].value_counts()
    assert counts.to_dict() == {
        ("residual", "holds"): 12,
        ("search", "undecided"): 9,
        ("search", "contradicted"): 3,
        (ablation.ZERO_SHOT, "undecided"): 12,
    }
    few = rows[rows["condition"] == "Flickr8k, 10 % of the pairs"]
    curves = ablation.over_beta(few).set_index(["measure", "method", "beta"])["mean"]
    of = few.groupby(["method", "beta"])
    bound = of["residual_bound_8192"].mean()
    vmf = tests[tests["claim"] == "vMF: Flickr8k, 10 % of the pairs"].set_index("hypothesis")
    fall = bound["CLIP", 0.0] - bound["vMF", 0.2]
    assert vmf.loc["residual", ["difference", "beta"]].tolist() == pytest.approx([fall, 0.2])
    assert curves["residual information", "vMF", 0.2] == pytest.approx(-fall)
    chosen = of["validation"].mean()["vMF"].idxmax()
    assert vmf.loc["search", "beta"] == chosen
    gain = curves["search", "vMF", chosen]
    assert vmf.loc["search", "difference"] == pytest.approx(gain)


def test_the_papers_estimate_is_of_the_first_noise(monkeypatch):
    given = []

    def estimate(noisy, pooled, names):
        given.append(noisy)
        return {"MINE": 0.0}

    monkeypatch.setattr(ablation, "estimate_nats", estimate)
    image, text = pairs_that_share(0.3)
    ablation.residual_nats(image, text)
    expected = vmf_mean_cosine(ablation.KAPPAS[0], 16)
    for noisy, own in zip(given, (image, image, text, text), strict=True):
        cosine = (noisy * own.features).sum(1).mean()
        assert 1 - float(cosine) == pytest.approx(1 - float(expected), rel=0.1)
