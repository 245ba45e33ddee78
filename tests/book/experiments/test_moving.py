"""Towers whose last stages move: the same embeddings before training, and what a run trains."""

import pytest
import torch
import transformers
from helpers import TEXTS, noise_pairs
from small_models import SIZES

from cibr.metrics import retrieval_recalls
from cibr.models import DualEncoder
from cibr.models.features import embed_pairs, prepare
from cibr.models.towers import ImageProcessor, TwoTowers, train_tokenizer
from cibr.train import configure
from cibr_book.experiments import moving, recipes
from cibr_book.experiments.tables import read_table

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


def test_critics_see_the_towers_before_training(base, drawn, tmp_path):
    model, rows = moving.moving(base), torch.arange(20)
    inputs, whole = (prepare(m, drawn["validation"])[rows, rows] for m in (model, base))
    given = [prepare(model, drawn["train"])]
    named = dict(
        penalty="mine", beta=1.0, learning_rate=1e-2, cca=False, output_dir=str(tmp_path / "run")
    )
    kept = {name: value for name, value in RUN.items() if name not in ("start", "corruption")}
    config = configure(**kept, **named)
    trainer = moving._MovingTrainer(model, config, ramps=False, given=given)
    assert trainer.train()["beta"].tolist() == [1.0]
    image, text = model.encode_images(inputs.images), model.encode_texts(*inputs.texts)
    pooled = trainer.loss_inputs(image, text)
    torch.testing.assert_close(pooled["image_pooled"], whole.images)
    torch.testing.assert_close(pooled["text_pooled"], *whole.texts)


def test_claims_compare_the_chosen_weight_with_fine_tuned_clip():
    rows = read_table("moving.csv")
    tests = moving.claim_tests(rows).set_index("claim")
    assert tests["outcome"].value_counts().to_dict() == {"holds": 8, "undecided": 4}
    own = rows[(rows["condition"] == "600 photos") & rows["seed"].between(800, 899)]
    search = 100 * own.filter(regex="^mini/flickr8k/text_to_image_recall").mean(axis=1)
    means = search.groupby([own["method"], own["hyperparameters"], own["beta"]]).mean()
    gains = means["CLIP-averaged"].to_numpy()[:, None] - means["CLIP"].to_numpy()
    claim = tests.loc["search: CLIP-averaged above CLIP", "difference"]
    assert abs(gains - claim).min() < 1e-9
