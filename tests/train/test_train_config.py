"""The configuration of a run: presets, the default folder, splits and the model."""

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from helpers import same
from small_runs import PAIRS, write_folder

from cibr import DualEncoder
from cibr.data import Features
from cibr.train import build_model, configure, load_splits
from cibr.train.config import preset_for

NAMES = ("epochs", "batch_size", "learning_rate", "temperature", "dropout", "weight_decay")
FILLED = [  # of the set in code, and of any folder, even one with its name
    ("glyphs", "tiny", (5, 128, 2e-3, 0.12, 0.0, 0.01)),
    ("folder/glyphs", "tiny", (20, 256, 2e-3, 0.1, 0.1, 0.05)),
    ("folder/glyphs", "frozen", (80, 512, 8e-3, 0.03, 0.5, 1.0)),
    ("folder/glyphs", "some/clip", (3, 64, 1e-5, 0.01, 0.0, 0.1)),
]


@pytest.mark.parametrize(("dataset", "model", "preset"), FILLED)
def test_defaults_of_the_model_fill_what_is_not_given(
    tmp_path, monkeypatch, dataset, model, preset
):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "folder" / "glyphs", train=1)
    filled = vars(configure(dataset=dataset, model=model))
    assert tuple(filled[name] for name in NAMES) == preset
    given = dict(zip(NAMES, (np.int64(3), 9, 1.0, 0.3, 0.0, 0), strict=True))
    filled = vars(configure(dataset=dataset, model=model, **given))
    assert {name: filled[name] for name in NAMES} == given


# Chosen on validation photos: `bench/heads_cca.py trials` and `bench/names.py trials`.
HEADS_FEW = dict(zip(NAMES, (80, 128, 0.002, 0.03, 0.7, 0.3), strict=True))
HEADS_MANY = dict(zip(NAMES, (80, 512, 0.008, 0.03, 0.5, 1.0), strict=True))
NAMES_FEW = dict(zip(NAMES, (40, 64, 0.00003, 0.14, 0.1, 0.0), strict=True))
NAMES_SOME = dict(zip(NAMES, (20, 128, 0.0001, 0.07, 0.2, 0.0), strict=True))
NAMES_MANY = dict(zip(NAMES, (5, 256, 0.0003, 0.07, 0.0, 0.0), strict=True))
CHOSEN = [  # model, preset, values, weight of CCA
    ("frozen", "few-photos", HEADS_FEW, 1.0),
    ("frozen", "some-photos", HEADS_FEW, 1.0),
    ("frozen", "many-photos", HEADS_MANY, 1.0),
    ("names", "few-photos", NAMES_FEW, 0.25),
    ("names", "some-photos", NAMES_SOME, 1.0),
    ("names", "many-photos", NAMES_MANY, 1.0),
]


@pytest.mark.parametrize(("model", "preset", "values", "cca_weight"), CHOSEN)
def test_a_preset_has_the_values_that_were_chosen(model, preset, values, cca_weight):
    config = vars(configure(preset, model=model))
    assert config.items() >= (values | {"model": model, "cca_weight": cca_weight}).items()
    assert config["cca_ridge_image"] is None and config["cca_ridge_text"] is None


def test_parameters_override_a_preset():
    config = configure("few-photos", model="frozen", epochs=3, cca_ridge_text=2)
    expected = HEADS_FEW | {"epochs": 3, "cca_ridge_text": 2.0}
    assert vars(config).items() >= expected.items()


@pytest.mark.parametrize("model", ["tiny", "clip-tiny"])
def test_a_model_without_presets_refuses_one(model):
    with pytest.raises(ValueError, match=f"{model} has no preset few-photos: leave it out"):
        configure("few-photos", model=model)


def test_cca_is_summed_over_frozen_towers_and_on_the_features_of_photos_only_with_heads():
    assert configure(model="frozen", dataset="photos").cca
    assert configure(model="names", dataset="some/folder").cca
    assert not configure(model="names", dataset="photos").cca
    assert not configure(model="names", train_stages=1, dataset="some/folder").cca
    assert not configure().cca
    assert not configure(model="frozen", cca=False).cca
    assert configure(model="names", dataset="photos", cca=True).cca


@pytest.mark.parametrize(
    ("n", "name"),
    [
        (2, "few-photos"),
        (300, "few-photos"),
        (301, "some-photos"),
        (1200, "some-photos"),
        (1201, "many-photos"),
    ],
)
def test_the_number_of_photos_chooses_the_preset(n, name):
    assert preset_for(n) == name


def test_none_stands_for_what_is_not_given():
    assert configure(epochs=None, model=None, preset=None) == configure()


def test_the_default_folder_is_named_after_data_model_penalty_beta_and_seed(monkeypatch):
    monkeypatch.setenv("CIBR_RUNS", "/runs")
    folder = configure(penalty="mine", beta=0.05, seed=2).output_dir
    assert folder == "/runs/glyphs-tiny-mine-beta0.05-seed2"


def test_without_a_test_split_validation_stands_in_for_it(tmp_path):
    run = configure(dataset=write_folder(tmp_path / "mine", train=3, val=2))
    with pytest.warns(UserWarning, match="mine has no test split: the validation pairs stand in"):
        train, validation, test = load_splits(run)
    assert (len(train), len(validation), test.split) == (3, 2, "validation")
    assert test.keys == validation.keys


def test_a_model_is_built_as_the_configuration_says(clip_folder, tmp_path):
    tiny = build_model(configure(temperature=0.2, dropout=0.3), PAIRS)
    assert tiny.towers.processor.size == 32
    folder = write_folder(tmp_path, train=1)
    assert configure(dataset=folder).model == "names" and configure().model == "tiny"
    assert configure(dataset=folder, towers=clip_folder).model == "frozen"
    assert tiny.logit_scale.item() == pytest.approx(5) and not tiny.log_logit_scale.requires_grad
    torch.manual_seed(77)
    assert same(build_model(configure(temperature=0.2, dropout=0.3), PAIRS), tiny)
    assert not same(build_model(configure(temperature=0.2, seed=1), PAIRS), tiny)
    run = configure(model=clip_folder, temperature=0.1, learn_temperature=True)
    model = build_model(run, PAIRS)
    assert model.logit_scale.item() == pytest.approx(10)


LOWEST = [  # a setting, its lowest value and one below it
    ("beta", 0, -1e-9),
    ("epochs", 1, 0),
    ("batch_size", 2, 1),
    ("learning_rate", 0, -1e-9),
    ("temperature", 0.01, 0.0099),
    ("weight_decay", 0, -1e-9),
    ("dropout", 0, -1e-9),
    ("seed", 0, -1),
    ("micro_batch_size", 1, 0),
    ("cca_ridge_image", 1e-9, 0),
    ("cca_ridge_text", 1e-9, 0),
    ("cca_weight", 1e-9, 0),
    ("save_steps", 1, 0),
]


@pytest.mark.parametrize(("name", "lowest", "below"), LOWEST)
def test_a_number_may_be_the_lowest_and_none_below(name, lowest, below):
    assert vars(configure(**{name: lowest}))[name] == lowest
    with pytest.raises(ValueError, match=f"^{name} is {below}"):
        configure(**{name: below})


def test_a_path_stands_for_its_text(tmp_path):
    folder = write_folder(tmp_path / "mine", train=1)
    as_text = configure(dataset=folder, output_dir=str(tmp_path / "out"))
    assert configure(dataset=Path(folder), output_dir=tmp_path / "out") == as_text


def test_a_tilde_in_the_output_folder_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configure(output_dir="~/run").output_dir == str(tmp_path / "run")


def test_a_tiny_model_reads_larger_images_of_photos(tmp_path):
    run = configure(dataset=write_folder(tmp_path, train=1), model="tiny")
    assert build_model(run, PAIRS).towers.processor.size == 64


def dropouts(model):
    return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}


def with_features(towers):
    """Pairs with features of five dimensions of images and seven of texts."""
    texts = PAIRS.texts()
    features = Features(torch.randn(24, 5), torch.randn(len(texts), 7), texts, towers)
    return replace(PAIRS, features=features)


def test_a_model_has_the_dropout_of_its_configuration(clip_folder):
    run = configure(model="frozen", dropout=0.3)
    assert dropouts(build_model(run, with_features(("an/image", "a/text")))) == {0.3}
    assert dropouts(build_model(configure(dropout=0.3), PAIRS)) == {0.3}
    run = configure(model="frozen", dropout=0.3, towers=clip_folder)
    assert dropouts(build_model(run, PAIRS)) == {0.3}


def test_a_names_model_has_the_dropout_and_the_stages_of_its_configuration(build, monkeypatch):
    start = build("names")
    names = Mock(return_value=start)
    monkeypatch.setattr(DualEncoder, "names", names)
    config = configure(model="names", dropout=0.3, train_stages=2, temperature=0.2)
    assert build_model(config, PAIRS) is start
    names.assert_called_once_with(dropout=0.3, train_stages=2)
    assert start.logit_scale.item() == pytest.approx(5)


def test_towers_that_are_not_given_are_those_of_the_features_of_the_pairs():
    pairs = with_features(("an/image", "a/text"))
    model = build_model(configure(model="frozen"), pairs)
    assert model.towers.names == ("an/image", "a/text")
    assert (model.dim_image_pooled, model.dim_text_pooled) == (5, 7)


def test_towers_that_are_given_go_before_those_of_the_features_of_the_pairs(clip_folder):
    run = configure(model="frozen", towers=clip_folder)
    model = build_model(run, with_features(("an/image", "a/text")))
    assert model.towers.names == (clip_folder, clip_folder)
    assert (model.dim_image_pooled, model.dim_text_pooled) == (32, 32)
