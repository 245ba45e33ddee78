"""A model's folder: bit for bit there and back; the shipped checkpoints."""

import json
import shutil
from functools import partial

import pytest
import torch
from helpers import TEXTS, picture, same
from safetensors.torch import load_file, save_file

import cibr
from cibr.models import DualEncoder
from cibr.utils import shipped

KINDS = ["tiny", "names", "staged", "frozen", "frozen dual", "hub"]
each_kind = pytest.mark.parametrize("kind", KINDS)
each_frozen = pytest.mark.parametrize("kind", ["frozen", "frozen dual"])
OURS = ["cibr.json", "cibr.safetensors"]


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


@each_kind
def test_a_saved_model_comes_back_bit_for_bit_whatever_was_in_its_folder(build, tmp_path, kind):
    (tmp_path / "history.csv").write_text("epoch\n")
    build("tiny").save_pretrained(tmp_path)
    model = changed(build(kind))
    model.trained_on = {"0123", "4567"}
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert type(again.towers) is type(model.towers) and type(again.head) is type(model.head)
    assert (again.training, again.context) == (False, model.context)
    assert same(again, model) and equal(again, model) and again.trained_on == model.trained_on
    assert (tmp_path / "history.csv").read_text() == "epoch\n"


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
    return changed(DualEncoder.frozen(*names, dim=16))


@each_frozen
def test_frozen_towers_are_saved_by_name_and_loaded_when_something_needs_them(
    store, tmp_path, monkeypatch, kind
):
    model = over(kind)
    folder = model.save_pretrained(tmp_path / "model")
    assert sorted(file.name for file in folder.iterdir()) == OURS
    with monkeypatch.context() as patch:
        patch.setattr("cibr.models.named_towers.load_named_towers", None)
        again = DualEncoder.from_pretrained(folder)
        pooled = torch.randn(3, model.dim_image_pooled)
        expected = model.encode_images(pooled).features
        assert torch.equal(again.encode_images(pooled).features, expected)
        again = DualEncoder.from_pretrained(again.save_pretrained(tmp_path / "again"))
    assert equal(again, model) and again.towers.names == model.towers.names


@each_frozen
def test_copied_towers_go_where_there_is_neither_hub_nor_store(store, tmp_path, kind):
    model = over(kind)
    model.save_pretrained(tmp_path / "model", copy_towers=True).rename(tmp_path / "moved")
    by_name = model.save_pretrained(tmp_path / "named")
    store.rename(tmp_path / "elsewhere")
    again = DualEncoder.from_pretrained(tmp_path / "moved")
    assert equal(again, model) and again.towers.names == model.towers.names
    message = "cannot load 'some/.*: give its folder, set CIBR_MODELS to one that holds some/"
    with pytest.raises(FileNotFoundError, match=message):
        DualEncoder.from_pretrained(by_name).embed_images([picture(0)])


def prefixed(weights):
    return {f"module.{name}": x for name, x in weights.items()}


def filled(value, weights):
    return weights | {max(weights): torch.full_like(weights[max(weights)], value)}


UNFIT = [
    (prefixed, r"\d+ of the weights .* are missing, such as"),
    (partial(filled, torch.nan), "are not finite"),
    (partial(filled, torch.inf), "are not finite"),
]
FILES = {"tiny": "cibr.safetensors", "frozen": "text_tower/model.safetensors"}
FILES |= {"frozen dual": "towers/model.safetensors", "hub": "model.safetensors"}
FILES |= dict.fromkeys(["names", "staged"], "cibr.safetensors")


@pytest.mark.parametrize(("spoil", "message"), UNFIT)
@each_kind
def test_weights_that_do_not_fit_or_are_not_finite_are_refused(
    build, tmp_path, kind, spoil, message
):
    file = build(kind).save_pretrained(tmp_path / "model") / FILES[kind]
    save_file(spoil(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        DualEncoder.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(("name", "beta"), [("clip-tiny", 0.0), ("cibr-tiny", 0.05)])
def test_a_shipped_checkpoint_names_unseen_drawings_and_says_how_it_was_made(name, beta):
    model, pairs = DualEncoder.from_pretrained(name), cibr.load_pairs("glyphs", "test")
    images, texts = model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts())
    recalls = cibr.recall_at_k(images, texts, pairs.text_to_image())
    assert 0.25 < recalls["image_to_text_recall@1"] < 0.60
    assert 0.70 < recalls["image_to_text_recall@10"] < 0.95
    about = json.loads((shipped(f"checkpoints/{name}") / "run.json").read_text())
    assert about["configuration"]["beta"] == beta and about["commit"]


def test_a_model_is_a_folder_or_in_cibr_models_or_shipped_in_this_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIBR_MODELS", str(tmp_path / "store"))
    assert DualEncoder.from_pretrained("cibr-tiny").dim == 128
    for dim, folder in ((8, tmp_path / "store"), (4, tmp_path)):
        DualEncoder.tiny(TEXTS, dim=dim, width=4).save_pretrained(folder / "cibr-tiny")
        assert DualEncoder.from_pretrained("cibr-tiny").dim == dim


def test_weights_of_another_shape_are_refused(build, tmp_path):
    file = build("tiny").save_pretrained(tmp_path) / "cibr.safetensors"
    weights = load_file(file)
    weights["head.image.2.weight"] = torch.zeros(3, 3)
    save_file(weights, file)
    with pytest.raises(ValueError, match="the weights in .* do not fit: .*head.image.2.weight"):
        DualEncoder.from_pretrained(tmp_path)


def test_a_folder_of_another_version_is_refused_by_name(build, tmp_path):
    build("tiny").save_pretrained(tmp_path)
    (tmp_path / "cibr.json").write_text('{"kind": "tiny", "settings": {}, "copied": false}')
    with pytest.raises(ValueError, match="cibr.json is of another version of cibr: train"):
        DualEncoder.from_pretrained(tmp_path)


def test_damaged_weights_are_named(build, tmp_path):
    saved = build("tiny").save_pretrained(tmp_path / "mine")
    file = tmp_path / "mine" / "cibr.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"cibr.safetensors is damaged \(.*\): save it again"):
        DualEncoder.from_pretrained(saved)


def test_sizes_and_dropout_of_a_tiny_model_come_back(tmp_path):
    model = DualEncoder.tiny(TEXTS, dim=8, width=4, image_size=16, dropout=0.3)
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert again.preprocess([picture(0)]).shape == (1, 3, 16, 16)
    dropouts = [m.p for m in again.modules() if isinstance(m, torch.nn.Dropout)]
    assert len(dropouts) > 2 and set(dropouts) == {0.3}


def test_a_wide_tiny_model_comes_back_bit_for_bit(tmp_path):
    model = DualEncoder.tiny(TEXTS, dim=8, width=16)
    assert same(DualEncoder.from_pretrained(model.save_pretrained(tmp_path)), model)


def test_both_towers_are_copied_if_one_has_no_hub_id(store, tower_folders, tmp_path):
    for names in (("some/vit", tower_folders[1]), (tower_folders[0], "some/bert")):
        folder = DualEncoder.frozen(*names, dim=16).save_pretrained(tmp_path / "model")
        assert (folder / "image_tower").is_dir() and (folder / "text_tower").is_dir()
        shutil.rmtree(folder)


def test_towers_in_a_folder_that_reads_as_a_hub_id_are_copied(store, tmp_path, monkeypatch):
    monkeypatch.chdir(store.parent)
    folder = over("frozen").save_pretrained(tmp_path / "model")
    assert (folder / "image_tower").is_dir() and (folder / "text_tower").is_dir()


def test_dimensions_of_towers_that_are_saved_by_name_are_told_apart(tmp_path):
    model = DualEncoder.frozen("an/image", "a/text", dims_pooled=(5, 7), dim=16)
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert (again.dim_image_pooled, again.dim_text_pooled) == (5, 7)
    assert (again.towers.dim_image, again.towers.dim_text) == (5, 7)


def test_a_tilde_in_the_name_of_a_model_is_the_home_folder(build, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model = build("tiny")
    model.save_pretrained(tmp_path / "mine")
    assert same(DualEncoder.from_pretrained("~/mine"), model)


@pytest.mark.parametrize("name", ["../nothing", "./nothing", ".hidden/model"])
def test_a_path_to_no_folder_is_no_hub_id(name):
    with pytest.raises(FileNotFoundError, match=f"unknown model '{name}'"):
        DualEncoder.from_pretrained(name)
