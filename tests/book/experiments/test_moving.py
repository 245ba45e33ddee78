"""Towers whose last stages move: the same embeddings before training, and what a run trains."""

import pandas as pd
import pytest
import torch
import transformers
from helpers import TEXTS, noise_pairs
from small_models import SIZES

from cibr.losses import CIBRLoss
from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.features import embed_pairs, prepare
from cibr.models.towers import ImageProcessor, TwoTowers, train_tokenizer
from cibr.train import configure
from cibr_book.experiments import moving, recipes
from cibr_book.experiments.confirmation import VALIDATION, measure_columns
from cibr_book.experiments.corruptions import corrupt

START = {"epochs": 1, "learning_rate": 1e-3, "temperature": 0.05, "batch_size": 16}
RUN = {"model": "frozen", "dataset": "flickr8k", "seed": 1, "epochs": 1, "batch_size": 16}
RUN |= {"start": START | {"cca_ridges": [3, 1]}, "corruption": {"fraction": 0.5}}


@pytest.fixture(scope="module")
def base():
    """Heads over an EfficientNet-Lite0 and a BERT of four layers with random weights."""
    torch.manual_seed(0)
    config = transformers.TimmWrapperConfig(architecture="tf_efficientnet_lite0", num_labels=0)
    image, tokenizer = transformers.TimmWrapperModel(config), train_tokenizer(TEXTS, context=40)
    for norm in (m for m in image.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0  # one batch makes its statistics those of the random weights
    image.train()(pixel_values=torch.randn(8, 3, 64, 64))
    sizes = SIZES | {"num_hidden_layers": 4, "vocab_size": len(tokenizer)}
    text = transformers.BertModel(transformers.BertConfig(max_position_embeddings=40, **sizes))
    towers = TwoTowers(image, text, ImageProcessor(64), tokenizer).eval()
    settings = dict(dims=[16, *towers.widths()], dropout=0.0, with_linear=False)
    return DualEncoder.over(towers, settings).eval()


@pytest.fixture
def drawn(base, monkeypatch, tmp_path):
    """Pairs in place of Flickr8k's."""
    monkeypatch.setattr("cibr.models.features.cache_folder", lambda: tmp_path / "cache")
    parts = {"train": noise_pairs(60, n_captions=2), "validation": noise_pairs(20)}
    found = base, {name: prepare(base, pairs) for name, pairs in parts.items()}
    monkeypatch.setattr(recipes, "features", lambda: found)
    monkeypatch.setattr(moving, "load_pairs", lambda _, name: parts[name])
    moving._features.cache_clear()
    moving._trained.cache_clear()
    yield parts
    moving._features.cache_clear()


def test_before_training_embeddings_are_those_of_the_frozen_towers(base, drawn):
    model = moving.moving(base).train()
    own, whole = (prepare(m, drawn["train"]) for m in (model, base))
    assert own.images.shape[1] > whole.images.shape[1]
    for z, frozen in zip(embed_pairs(model, own), embed_pairs(base, whole), strict=True):
        torch.testing.assert_close(z, frozen, atol=1e-5, rtol=0)
    texts = [TEXTS[0], " ".join(TEXTS[:3])]  # of two lengths
    torch.testing.assert_close(model.embed_texts(texts), base.embed_texts(texts))


def test_training_moves_the_last_stages_and_heads_alone(base, drawn, monkeypatch, tmp_path):
    models = []
    monkeypatch.setattr(moving, "suite_scores", lambda model, *_: models.append(model) or {})
    start = moving.train_and_measure(RUN | {"untouched": True}, tmp_path / "start")
    found = moving.train_and_measure(RUN | {"learning_rate": 1e-3}, tmp_path / "run")
    assert 0 <= found["validation_recall@5"] <= 1 and start.keys() <= found.keys()
    inputs = prepare(models[0], drawn["validation"])
    recalls = retrieval_recalls(*embed_pairs(models[0], inputs), *inputs.pairs.retrieval_targets())
    assert start.items() >= {f"validation_{name}": x for name, x in recalls.items()}.items()
    before, after = (model.own_weights() for model in models)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert all("running_" in name or "num_batches" in name or "log_" in name for name in still)
    assert any("running_" in name for name in still) and len(still) < len(before) / 2
    mixed = moving.train_and_measure(
        RUN | {"learning_rate": 1e-3, "interpolation": 0.3}, tmp_path / "mixed"
    )
    assert mixed.keys() == found.keys()
    assert mixed["training_seconds"] == found["training_seconds"]  # of one training
    z = embed_pairs(models[2], inputs := prepare(models[2], drawn["validation"]))
    recalls = retrieval_recalls(*z, *inputs.pairs.retrieval_targets())
    assert mixed.items() >= {f"validation_{name}": x for name, x in recalls.items()}.items()
    of_heads = ((n, w) for n, w in models[2].named_parameters() if "_head." in n)
    for name, weights in of_heads:
        torch.testing.assert_close(weights, before[name].lerp(after[name], 0.7))
    moving.train_and_measure(RUN | {"learning_rate": 1e-3, "heads_alone": True}, tmp_path / "alone")
    alone = models[3].own_weights()
    changed = {name for name in alone if not torch.equal(before[name], alone[name])}
    heads = {name for name in alone if "_head.1." in name}
    assert changed - {"log_logit_scale"} == heads - still


def test_critics_and_the_anchor_see_the_towers_before_training(base, drawn, tmp_path):
    model, rows = moving.moving(base), torch.arange(20)
    inputs, whole = (prepare(m, drawn["validation"])[rows, rows] for m in (model, base))
    given = prepare(model, drawn["train"]), prepare(model, drawn["validation"])
    start = moving.StartingPoint(base)
    named = dict(
        RUN,
        cca=False,
        output_dir=str(tmp_path / "run"),
        penalty="mine",
        beta=1.0,
        learning_rate=1e-2,
    )
    config = configure(**{k: v for k, v in named.items() if k not in ("start", "corruption")})
    trainer = moving._MovingTrainer(model, config, given=given, statistic=start, ramps=False)
    trainer.train()
    assert trainer.history["beta"].tolist() == [1.0]
    image, text = model.encode_images(inputs.images), model.encode_texts(*inputs.texts)
    pooled = trainer.loss_inputs(image, text)
    torch.testing.assert_close(pooled["image_pooled"], whole.images)
    torch.testing.assert_close(pooled["text_pooled"], *whole.texts)
    loss = CIBRLoss(1.0, "anchor", statistic=start)
    frozen = base.encode_images(whole.images).features, base.encode_texts(*whole.texts).features
    about = {name: pooled[name] for name in ("image_pooled", "text_pooled")}
    assert loss(*frozen, 10.0, **about)["penalty_loss"].abs() < 1e-4
    assert loss(image.features, text.features, 10.0, **about)["penalty_loss"] > 1e-3


def test_claims_compare_the_chosen_weight_with_fine_tuned_clip():
    columns = measure_columns()
    effects = {  # on search, zero-shot accuracy and validation
        ("start", 0.0): (-0.03, 0.02, 0.0),
        ("CLIP", 0.0): (0.0, 0.0, 0.0),
        ("CLIP, slower", 0.0): (0.3, 0.3, -0.01),
        ("CLIP-averaged", 0.0): (0.0, 0.01, 0.0),
        ("noise only", 0.0): (0.05, 0.05, 0.0),
        ("anchor at the start", 0.3): (0.01, 0.01, 0.02),
        ("anchor at the start", 1.0): (0.05, 0.05, 0.01),
        ("anchor, heads alone", 0.3): (0.02, 0.0, 0.0),
        ("MINE", 0.3): (-0.01, 0.0, 0.0),
    }
    names = ("text to image, Flickr8k", "zero-shot accuracy", VALIDATION)
    rows = []
    for (method, beta), gains in effects.items():
        for seed in range(800, 808):
            row = dict.fromkeys([c for of in columns.values() for c in of], 0.5 + seed / 1e4)
            for name, gain in zip(names, gains, strict=True):
                row |= {c: row[c] + gain + (seed % 3) * 1e-4 for c in columns[name]}
            name, _, settings = method.partition(", s")
            row |= {"condition": "600 photos", "method": name, "hyperparameters": settings}
            row |= {"beta": beta, "seed": seed}
            rows.append(row)
    trials = [row | {"seed": 0} | dict.fromkeys(columns[VALIDATION], row["beta"]) for row in rows]
    half = [row | dict.fromkeys(columns["text to image, Flickr8k"], 0.5) for row in rows]
    elsewhere = [row | {"condition": "3,000 photos"} for row in half]
    later = [row | {"seed": row["seed"] + 100} for row in half]  # of another plan
    given = pd.DataFrame(rows + trials[::8] + elsewhere + later)
    tests = moving.claim_tests(given).set_index("claim")
    gain = tests.loc["search: anchor at the start above CLIP", "difference"]
    assert gain == pytest.approx(1)
    assert tests["outcome"].to_dict() == {
        "zero-shot accuracy: start above CLIP": "holds",
        "search: CLIP-averaged above CLIP": "undecided",
        "zero-shot accuracy: CLIP-averaged above CLIP": "holds",
        "search: anchor at the start above CLIP": "holds",
        "zero-shot accuracy: anchor at the start above CLIP": "holds",
        "search: MINE above CLIP": "contradicted",
        "zero-shot accuracy: MINE above CLIP": "undecided",
        "search: anchor at the start above start": "holds",
        "search: anchor at the start above CLIP-averaged": "holds",
        "search: anchor at the start above anchor, heads alone": "contradicted",
    }


def test_the_seed_is_also_that_of_the_draw_and_of_the_start(drawn, monkeypatch, tmp_path):
    seeds, heads = [], moving.trained_heads

    def spy(*given):
        seeds.append(given[2])
        return corrupt(*given)

    monkeypatch.setattr(moving, "corrupt", spy)
    spied = lambda *given: seeds.append(given[3]) or heads(*given)  # noqa: E731
    monkeypatch.setattr(moving, "trained_heads", spied)
    moving.train_and_measure(RUN | {"seed": 5}, tmp_path / "run")
    assert seeds == [5, 5, 5]
