"""A model's folder: bit for bit there and back; the shipped checkpoints."""

import json
import os
from unittest.mock import Mock

import pytest
import torch
from helpers import TEXTS, picture, same

import cibr
from cibr.models import DualEncoder, dual_encoder, model_kind
from cibr.utils import shipped

each_kind = pytest.mark.parametrize("kind", ["tiny", "frozen", "frozen dual", "hub"])


def equal(a, b):
    """Whether two models embed alike, bit for bit."""
    images = [picture(i) for i in range(3)]
    same_images = torch.equal(a.embed_images(images), b.embed_images(images))
    return same_images and torch.equal(a.embed_texts(TEXTS[:5]), b.embed_texts(TEXTS[:5]))


def changed(model):
    """The model with other trainable weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@each_kind
def test_a_saved_model_comes_back_bit_for_bit_and_is_replaced_whole(build, tmp_path, kind):
    (tmp_path / "history.csv").write_text("epoch\n")
    build(kind).save_pretrained(tmp_path)
    before = names(tmp_path)
    model = changed(build(kind))
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert (again.kind, again.training, again.context) == (model.kind, False, model.context)
    assert again.processor.to_dict() == model.processor.to_dict()
    assert same(again, model) and equal(again, model) and names(tmp_path) == before
    assert not any(name.startswith(".") for name in before)
    assert (tmp_path / "history.csv").read_text() == "epoch\n"


def test_a_model_replaces_one_of_another_kind(build, tmp_path):
    kinds = ["tiny", "hub", "frozen dual", "frozen", "hub", "tiny"]
    for model in map(build, kinds):
        again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
        assert again.kind == model.kind and same(again, model) and equal(again, model)


def test_a_full_disk_leaves_the_old_model_and_no_rubbish(build, tmp_path, monkeypatch):
    old = build("tiny")
    old.save_pretrained(tmp_path)
    before = names(tmp_path)
    monkeypatch.setattr(dual_encoder, "save_model", Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(ValueError, match="cannot write the model to .*No space left.*make room"):
        changed(build("tiny")).save_pretrained(tmp_path)
    assert names(tmp_path) == before and equal(DualEncoder.from_pretrained(tmp_path), old)


PARTS = ["cibr.json", "cibr.safetensors", "tokenizer.json", "preprocessor_config.json"]
FILES = {
    "tiny": PARTS,
    "frozen": [*PARTS, "image_tower/model.safetensors"],
    "frozen dual": [*PARTS, "towers/model.safetensors"],
    "hub": ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"],
}


@each_kind
def test_a_missing_or_damaged_file_is_refused(build, tmp_path, kind):
    build(kind).save_pretrained(tmp_path)
    error, message = ValueError, f"{tmp_path}.* is incomplete or damaged"
    if kind == "hub":
        error, message = FileNotFoundError, f"cannot load '{tmp_path}"
    for file in (tmp_path / name for name in FILES[kind]):
        content = file.read_bytes()
        for spoil in (lambda file: os.truncate(file, 50), os.remove):
            spoil(file)
            with pytest.raises(error, match=message):
                DualEncoder.from_pretrained(tmp_path)
        file.write_bytes(content)


@pytest.mark.parametrize(("name", "beta"), [("clip-tiny", 0.0), ("cibr-tiny", 0.05)])
def test_a_shipped_checkpoint_names_unseen_drawings_and_says_how_it_was_made(name, beta):
    model, pairs = DualEncoder.from_pretrained(name), cibr.load_pairs("glyphs", "test")
    images, texts = model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts())
    recalls = cibr.recall_at_k(images, texts, pairs.text_to_image())
    assert 0.25 < recalls["image_to_text_recall@1"] < 0.60
    assert 0.70 < recalls["image_to_text_recall@10"] < 0.95
    folder = shipped(f"checkpoints/{name}")
    about = json.loads((folder / "run.json").read_text())
    made_as = {key: about["configuration"][key] for key in ("beta", "seed", "dataset", "model")}
    assert made_as == {"beta": beta, "seed": 0, "dataset": "glyphs", "model": "tiny"}
    assert about["commit"] and sum(file.stat().st_size for file in folder.iterdir()) < 3e6


def test_a_model_is_looked_for_in_a_folder_then_in_cibr_models_then_as_shipped(
    build, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CIBR_MODELS", raising=False)
    names = ("tiny", "frozen", "openai/clip-vit-base-patch32", str(tmp_path))
    assert [model_kind(name) for name in names] == ["tiny", "frozen", "hub", "hub"]
    assert DualEncoder.from_pretrained("cibr-tiny").dim == 128
    model = build("tiny")
    monkeypatch.setenv("CIBR_MODELS", str(tmp_path / "store"))
    for temperature, folder in ((0.5, tmp_path / "store"), (0.25, tmp_path)):
        model.set_temperature(temperature)
        for name in ("cibr-tiny", "some/model"):
            model.save_pretrained(folder / name)
            loaded = DualEncoder.from_pretrained(name)
            assert loaded.logit_scale.item() == pytest.approx(1 / temperature)
