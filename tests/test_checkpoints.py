"""The two small models that come with the repository load, score as they did, and are what their run.json says."""

import json

import pytest

import cibr
from cibr.models.pretrained import model_kind, resolve_model
from cibr.paths import project_root

FOLDER = project_root() / "data" / "checkpoints"
BETAS = {"clip-tiny": 0.0, "cibr-tiny": 0.05}


@pytest.mark.parametrize("name", BETAS)
def test_a_checkpoint_loads_by_its_name_and_finds_the_names_of_unseen_drawings(name):
    assert resolve_model(name) == str(FOLDER / name)
    model, pairs = cibr.DualEncoder.from_pretrained(name), cibr.load_pairs("glyphs", "test")
    assert model.kind == "tiny" and next(model.parameters()).dtype.is_floating_point
    images, texts = model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts())
    recalls = cibr.recall_at_k(images, texts, pairs.text_to_image())
    assert 0.25 < recalls["image_to_text_recall@1"] < 0.60
    assert 0.70 < recalls["image_to_text_recall@10"] < 0.95


@pytest.mark.parametrize(("name", "beta"), BETAS.items())
def test_a_checkpoint_is_small_and_says_how_it_was_made(name, beta):
    about = json.loads((FOLDER / name / "run.json").read_text())
    settings = about["configuration"]
    assert (settings["beta"], settings["seed"], settings["dataset"], settings["model"]) == (
        beta,
        0,
        "glyphs",
        "tiny",
    )
    preset = cibr.configure(dataset="glyphs", model="tiny", beta=beta).to_dict()
    assert settings == {key: preset[key] for key in settings}  # settings that came later have their old value
    assert about["commit"] and sum(file.stat().st_size for file in (FOLDER / name).iterdir()) < 3e6


def test_the_names_of_checkpoints_hide_no_other_model(tmp_path, monkeypatch):
    (tmp_path / "clip-tiny").mkdir()
    monkeypatch.setenv("CIBR_MODELS", str(tmp_path))
    assert resolve_model("clip-tiny") == str(tmp_path / "clip-tiny")
    assert model_kind("tiny") == "tiny"


def test_a_misspelt_model_is_answered_with_the_nearest_name_and_not_looked_for_on_the_hub():
    with pytest.raises(
        FileNotFoundError, match="there is no model 'cibr-tinny', did you mean 'cibr-tiny'.* a hub id"
    ):
        cibr.DualEncoder.from_pretrained("cibr-tinny")
    with pytest.raises(FileNotFoundError, match="there is no model ''"):
        cibr.DualEncoder.from_pretrained("")
