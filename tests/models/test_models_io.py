"""A model's folder: bit for bit there and back; the shipped checkpoints."""

import json
import os
import shutil
from unittest.mock import Mock

import pytest
import torch
from helpers import TEXTS, picture, same
from safetensors.torch import load_file, save_file

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
    assert repr(again.processor) == repr(model.processor)
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
    monkeypatch.setattr(dual_encoder, "save_file", Mock(side_effect=OSError(28, "No space left")))
    with pytest.raises(ValueError, match="cannot write the model to .*No space left.*make room"):
        changed(build("tiny")).save_pretrained(tmp_path)
    assert names(tmp_path) == before and equal(DualEncoder.from_pretrained(tmp_path), old)


OURS = ["cibr.json", "cibr.safetensors"]
TOWERS = ["image_tower/model.safetensors", "text_tower/model.safetensors"]
FILES = {
    "tiny": [*OURS, "tokenizer.json"],
    "frozen": [*OURS, *TOWERS, "text_tower/tokenizer.json", "image_tower/preprocessor_config.json"],
    "frozen dual": [*OURS, "towers/model.safetensors", "towers/tokenizer.json"],
    "hub": ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"],
}


@each_kind
def test_a_missing_or_damaged_file_or_a_pipe_is_refused(build, tmp_path, kind):
    build(kind).save_pretrained(tmp_path)
    error, message = ValueError, f"cannot load the model in '{tmp_path}': "
    if kind == "hub":
        error, message = FileNotFoundError, f"cannot load '{tmp_path}'|'{tmp_path}' holds no model"
    for file in (tmp_path / name for name in FILES[kind]):
        content = file.read_bytes()
        for spoil in (lambda file: os.truncate(file, 50), os.remove):
            spoil(file)
            with pytest.raises(error, match=message):
                DualEncoder.from_pretrained(tmp_path)
        os.mkfifo(file)
        with pytest.raises(ValueError, match=f"'{file}' is a pipe: put the model's file"):
            DualEncoder.from_pretrained(tmp_path)
        file.unlink()
        file.write_bytes(content)


# Names of towers


@pytest.fixture
def store(tower_folders, clip_folder, tmp_path, monkeypatch):
    """A folder of models by hub id, without a hub."""
    for place, name in zip((*tower_folders, clip_folder), ("vit", "bert", "clip"), strict=True):
        shutil.copytree(place, tmp_path / "store" / "some" / name)
    monkeypatch.setenv("CIBR_MODELS", str(tmp_path / "store"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path / "store" / "some"


def over(kind):
    names = ("some/clip", "some/clip") if kind == "frozen dual" else ("some/vit", "some/bert")
    torch.manual_seed(2)
    return DualEncoder.frozen(*names, dim=16, image_size=32)


each_frozen = pytest.mark.parametrize("kind", ["frozen", "frozen dual"])


@each_frozen
def test_frozen_towers_are_saved_by_name_and_loaded_when_something_needs_them(
    store, tmp_path, kind
):
    model = changed(over(kind))
    folder = model.save_pretrained(tmp_path / "model")
    assert names(folder) == OURS
    again = DualEncoder.from_pretrained(folder)
    pooled = torch.randn(3, model.dim_image_pooled)
    assert torch.equal(again.encode_images(pooled).features, model.encode_images(pooled).features)
    assert again.towers is None
    again = DualEncoder.from_pretrained(again.save_pretrained(tmp_path / "again"))
    assert equal(again, model) and again.tower_names == model.tower_names
    assert again.preprocess([picture(0)]).shape == (1, 3, 32, 32)


@each_frozen
def test_copied_towers_go_where_there_is_neither_hub_nor_store(store, tmp_path, kind):
    model = changed(over(kind))
    model.save_pretrained(tmp_path / "model", copy_towers=True).rename(tmp_path / "moved")
    by_name = model.save_pretrained(tmp_path / "named")
    store.rename(tmp_path / "elsewhere")
    again = DualEncoder.from_pretrained(tmp_path / "moved")
    assert equal(again, model) and again.tower_names == model.tower_names
    message = "cannot load 'some/.*: give its folder, set CIBR_MODELS to one that holds some/"
    for use in (lambda m: m.embed_texts(["a"]), lambda m: m.embed_images([picture(0)])):
        with pytest.raises(FileNotFoundError, match=message):
            use(DualEncoder.from_pretrained(by_name))
    again.save_pretrained(tmp_path / "moved")  # by name: the copies beside it count no more
    with pytest.raises(FileNotFoundError, match=message):
        DualEncoder.from_pretrained(tmp_path / "moved").save_pretrained(tmp_path, copy_towers=True)


@each_frozen
def test_towers_of_the_same_name_and_other_weights_are_refused(store, tmp_path, kind):
    folder = over(kind).save_pretrained(tmp_path / "model")
    for _ in range(2):  # also after it is saved again without them
        DualEncoder.from_pretrained(folder).embed_texts(["a"])
        folder = DualEncoder.from_pretrained(folder).save_pretrained(tmp_path / "again")
    file = store / ("clip" if kind == "frozen dual" else "bert") / "model.safetensors"
    weights = load_file(file)
    save_file(weights | {min(weights): weights[min(weights)] + 1}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="the towers some/.* have other weights than those that"):
        DualEncoder.from_pretrained(folder).embed_texts(["a"])


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
