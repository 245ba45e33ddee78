"""`photos`: features of real photos in the repository, which need no network, towers or images."""

import hashlib
import json
import os
import re
import runpy
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import noise_pairs

import cibr
from cibr.data import load_pairs, photos
from cibr.evaluate import Task, evaluate
from cibr.models.inputs import prepare
from cibr.utils import shipped

FOLDER = shipped("photos")
SCRIPT = Path(__file__).resolve().parents[2] / "book" / "photos.py"
ID = re.compile(r"(train|validation|test)/s\d{7}#\d")
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="data/photos is not here")
LOCAL = os.environ.get("CIBR_DATA") or ""
with_data = pytest.mark.skipif(not Path(LOCAL, "wds_flickr8k").is_dir(), reason="no local Flickr8k")
with_models = pytest.mark.skipif(not os.environ.get("CIBR_MODELS"), reason="no CIBR_MODELS")


@pytest.fixture
def closed(monkeypatch):
    """Neither a network nor settings."""
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("CIBR_DATA", "CIBR_MODELS"):
        monkeypatch.delenv(name, raising=False)


def test_every_file_is_the_one_that_the_script_wrote():
    lines = (FOLDER / "SHA256SUMS").read_text().splitlines()
    digests = {name: digest for digest, name in map(str.split, lines)}
    files = [*FOLDER.glob("*.safetensors"), *FOLDER.glob("shown/*")]
    found = {file.relative_to(FOLDER).as_posix(): file.read_bytes() for file in files}
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == digests


def test_all_sets_load_without_network_settings_or_images(closed):
    names = [(name, split) for name, own in photos.SPLITS.items() for split in own]
    parts = [load_pairs(*of) for of in names]
    assert [(pairs.name, pairs.split) for pairs in parts] == names
    assert [len(pairs) for pairs in parts[:5]] == [3000, 300, 1000, 40, 407]
    for pairs in parts:
        images, texts, strings, _ = pairs.features
        assert images.shape == (len(pairs), 1280) and texts.shape == (len(strings), 384)
        assert set(strings) >= set(pairs.texts())
        assert (pairs.load is not None) == (pairs.split == "shown")
    for pairs in parts[5:]:
        assert set(pairs.features.strings) >= {text for own in pairs.prompts() for text in own}
        counts = pairs.labels.bincount(minlength=len(pairs.classnames)).float()
        assert len(pairs) > 290 and counts.max() <= 1.4 * counts.mean()  # no class is a good guess


def test_captions_of_flickr8k_are_texts_only_where_photos_are_shown():
    shown = load_pairs("photos", "shown")
    allowed = set(shown.texts())
    assert not any(map(ID.fullmatch, allowed))
    for split in ("train", "validation", "test"):
        texts = load_pairs("photos", split).texts()
        assert all(text in allowed or ID.fullmatch(text) for text in texts)


def test_what_features_cannot_give_is_said_in_one_sentence(closed):
    pairs, towers = load_pairs("photos", "test"), ("some/vit", "some/bert")
    pairs = replace(pairs, features=pairs.features._replace(towers=towers))
    model = cibr.DualEncoder.frozen(*towers, dims_pooled=(1280, 384), dim=8)
    message = "cannot load 'some/vit' with .*: give its folder, set CIBR_MODELS to one that holds"
    for use in (
        lambda: model.embed_texts(["a cat"]),
        lambda: prepare(model, noise_pairs(3)),
        lambda: prepare(model, pairs, texts=["a cat", "an unseen text"]),
    ):
        with pytest.raises(FileNotFoundError, match=message):
            use()
    with pytest.raises(ValueError, match="photos has features of its images, but not the images"):
        pairs.image(0)


def test_heads_on_few_photos_beat_chance_on_every_set_and_load_again(closed, tmp_path):
    options = dict(dataset="photos", preset="few-photos", output_dir=str(tmp_path), epochs=20)
    config = cibr.configure(**options)
    train, validation, _ = cibr.load_splits(config)
    train = train.subset(range(600))
    trained = cibr.build_model(config, train)
    cibr.fit(trained, train, validation, config)
    model = cibr.DualEncoder.from_pretrained(tmp_path)
    rows = evaluate(model, "photos", name="heads").rows.set_index(["dataset", "metric"])
    for name in photos.CLASSES:
        chance = 1 / len(load_pairs(name, "test").classnames)
        assert rows.loc[(name, "accuracy@1"), "low"] > chance, name
    for name in ("photos", "photos-coco"):  # 0.5 and 1.2 % of all photos
        assert rows.loc[(name, "text_to_image_recall@5"), "value"] > 0.2


def test_where_the_folder_is_absent_the_error_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setattr(photos, "shipped", lambda name: tmp_path / name)
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "other"))
    with pytest.raises(FileNotFoundError, match=r"test.safetensors is not here: .*; clone it"):
        load_pairs("photos", "test")


@pytest.mark.data
@pytest.mark.models
@with_data
@with_models
def test_the_towers_compute_these_features_again():
    script = runpy.run_path(str(SCRIPT))
    whole, pairs = load_pairs("flickr8k", "test"), load_pairs("photos", "test")
    place = {f"test/{key}": i for i, key in enumerate(whole.keys)}
    local = whole.subset([place[key] for key in pairs.keys])
    with (model := cibr.DualEncoder.frozen()).evaluating():
        images = script["image_features"](model, local.subset(range(20)))
        texts = script["text_features"](model, local.texts()[:40])
    stored, row = pairs.features, {text: i for i, text in enumerate(pairs.features.strings)}
    rows = [row[name] for name in pairs.texts()[:40]]
    for found, same, n_codes in ((images, stored.images, 255), (texts, stored.texts, 127)):
        step = same.abs().amax(0) / n_codes
        same = same[:20] if found is images else same[rows]
        assert ((found - same).abs() <= 0.5 * step + 1e-4).all()  # rounding, and other machines


def test_the_shipped_model_of_photos_finds_those_of_another_set(closed):
    model = cibr.DualEncoder.from_pretrained("names-flickr8k")
    rows = evaluate(model, [Task("photos-coco")], name="m").rows.set_index("metric")["value"]
    for way in ("text_to_image", "image_to_text"):  # in the draws of names.csv 46 %
        mean = sum(rows[f"{way}_recall@{k}"] for k in (1, 5, 10)) / 3
        assert 0.43 < mean < 0.49
    folder = shipped("checkpoints/names-flickr8k")
    configuration = json.loads((folder / "run.json").read_text())["configuration"]
    assert (configuration["model"], configuration["dataset"]) == ("names", "photos")
    assert (folder / "LICENSE").read_bytes() == (FOLDER / "LICENSE").read_bytes()


def test_training_on_the_photos_makes_the_shipped_model(closed, tmp_path):
    config = cibr.configure(dataset="photos", preset="many-photos", output_dir=str(tmp_path))
    train, validation, _ = cibr.load_splits(config)
    cibr.fit(model := cibr.build_model(config, train), train, validation, config)
    shipped_model = cibr.DualEncoder.from_pretrained("names-flickr8k")
    assert shipped_model.trained_on == model.trained_on
    for name, weights in model.head.state_dict().items():
        found = shipped_model.head.state_dict()[name]
        error = (found - weights).norm() / weights.norm()
        assert error < 0.01, name  # half precision, and sums in another order
