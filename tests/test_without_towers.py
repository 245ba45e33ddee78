"""Heads over given features are trained, tested and saved without towers, images or a network."""

import socket

import pytest
import torch
from helpers import TEXTS, noise_pairs, same

import cibr
from cibr.data import DATASETS, Dataset, Features
from cibr.data.pairs import Pairs
from cibr.evaluate import Task, evaluate
from cibr.models.features import prepare
from cibr.train.trainer import fit_cca

TOWERS = ("some/vit", "some/bert")
CLASSES = ["cat", "dog", "bird"]
TEMPLATES = ["a {c}", "a red {c}"]


@pytest.fixture(autouse=True)
def closed(monkeypatch, tmp_path):
    """Neither a network nor models, and a data set `given` of features."""

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.delenv("CIBR_MODELS", raising=False)
    monkeypatch.setattr("cibr.models.features.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(DATASETS, "given", Dataset(given, ["train", "validation", "test"]))


def given(split, n=28):
    """Features of images, captions and prompts, in which an image's two captions show."""
    generator = torch.Generator().manual_seed(len(split))
    strings = [*TEXTS, *(t.replace("{c}", name) for name in CLASSES for t in TEMPLATES)]
    texts = torch.randn(len(strings), 7, generator=torch.Generator().manual_seed(0))
    texts[n : 2 * n] = texts[:n] + 0.1 * texts[n : 2 * n]
    captions = [[TEXTS[i], TEXTS[i + n]] for i in range(n)]
    images = torch.cat([texts[:n], torch.randn(n, 2, generator=generator)], 1)
    return Pairs(
        "given",
        split,
        captions,
        [str(i) for i in range(n)],
        labels=torch.arange(n) % 3 if split == "test" else None,
        classnames=CLASSES,
        templates=TEMPLATES,
        features=Features(images.half(), texts.half(), strings, TOWERS),
    )


def test_heads_are_trained_tested_and_saved_over_given_features(tmp_path):
    run = {"dataset": "given", "model": "frozen", "output_dir": str(tmp_path / "run")}
    run |= dict(epochs=20, batch_size=14, learning_rate=1e-3, dropout=0.0)
    config = cibr.configure(**run)
    train, validation, test = cibr.load_splits(config)
    model = cibr.build_model(config, train)
    history = cibr.fit(model, train, validation, config)
    assert history["text_to_image_recall@1"].iloc[-1] > 0.5
    again = cibr.DualEncoder.from_pretrained(tmp_path / "run")
    assert model.towers is again.towers is None and same(again, model)
    tasks = [Task("given", "zero-shot"), Task("given", "retrieval", "validation")]
    rows = [evaluate(each, tasks, name="heads").rows for each in (model, again)]
    assert rows[0].equals(rows[1]) and rows[0]["value"].between(0, 1).all()
    cca = fit_cca(prepare(again, train), 4, (1.0, 1.0))
    assert cca.images(prepare(again, test).images).shape == (28, 4)


def test_what_features_cannot_give_is_said_in_one_sentence():
    pairs = given("train")
    model = cibr.DualEncoder.frozen(*TOWERS, dims_pooled=(9, 7), dim=8)
    message = "cannot load 'some/vit' with .*: give its folder, set CIBR_MODELS to one that holds"
    for use in (
        lambda: model.embed_texts(["a cat"]),
        lambda: prepare(model, noise_pairs(3)),
        lambda: prepare(model, pairs, texts=["a cat", "an unseen text"]),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            use()
    with pytest.raises(ValueError, match="given has features of its images, but not the images"):
        pairs.image(0)
