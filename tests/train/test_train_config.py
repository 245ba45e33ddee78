"""The configuration of a run: presets, names of folders, splits and the model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import same
from small_runs import PAIRS, write_folder

from cibr.train import build_model, configure, load_splits
from cibr.train.config import PRESETS, preset_for

NAMES = ("epochs", "batch_size", "learning_rate", "temperature", "dropout", "weight_decay")
FILLED = [  # of a card, and of any folder, even one with the card's name
    ("glyphs", "tiny", (5, 128, 2e-3, 0.12, 0.0, 0.01)),
    ("folder/glyphs", "tiny", (20, 256, 2e-3, 0.1, 0.1, 0.05)),
    ("folder/glyphs", "frozen", (80, 512, 8e-3, 0.03, 0.4, 0.3)),
    ("folder/glyphs", "some/clip", (3, 64, 1e-5, 0.01, 0.0, 0.1)),
]


@pytest.mark.parametrize(("dataset", "model", "preset"), FILLED)
def test_presets_fill_what_is_not_given(tmp_path, monkeypatch, dataset, model, preset):
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "folder" / "glyphs", train=1)
    filled = vars(configure(dataset=dataset, model=model))
    assert tuple(filled[name] for name in NAMES) == preset
    given = dict(zip(NAMES, (np.int64(3), 9, 1.0, 0.3, 0.0, 0), strict=True))
    filled = vars(configure(dataset=Path(dataset), model=model, **given))
    assert {name: filled[name] for name in NAMES} == given


@pytest.mark.parametrize(
    ("n", "name"), [(2, "few-photos"), (1200, "few-photos"), (1201, "many-photos")]
)
def test_the_number_of_photos_chooses_the_preset_and_parameters_override_it(n, name):
    assert preset_for(n) == name
    config = configure(name, epochs=3, output_dir="x")
    chosen = {name: value for name, value in PRESETS[name].items() if name != "epochs"}
    assert vars(config).items() >= (chosen | {"epochs": 3, "model": "frozen"}).items()


CHANGES = dict(
    beta=0.05, seed=1, penalty="mine", model="frozen", sample=True, epochs=3, kappa_e=8.0
)
CHANGES |= dict(penalty_options={"kappa_b": 20.0}, weight_decay=0.3)


def test_a_setting_that_changes_the_run_changes_its_folder_and_no_other_does(monkeypatch):
    monkeypatch.setenv("CIBR_RUNS", "/runs")
    plain = configure().output_dir
    assert plain == "/runs/glyphs-tiny-vmf-beta0-seed0"
    assert configure(beta=0.05, seed=2).output_dir == "/runs/glyphs-tiny-vmf-beta0.05-seed2"
    assert configure(sample=True).output_dir.startswith(f"{plain}-")
    folders = {configure(**{name: value}).output_dir for name, value in CHANGES.items()}
    assert len(folders | {plain}) == 1 + len(CHANGES)
    preset = dict(zip(NAMES, FILLED[0][2], strict=True))
    assert configure(micro_batch_size=5, **preset).output_dir == plain
    assert configure(output_dir="here").output_dir == "here"


def test_a_tenth_of_train_stands_in_for_validation_and_validation_for_test(tmp_path):
    run = configure(dataset=write_folder(tmp_path / "mine", train=29, test=3))
    train, validation, test = load_splits(run)
    held_out = {"mine": set(validation.keys), "again": set(load_splits(run)[1].keys)}
    assert held_out["mine"] == held_out["again"] and 1 <= len(validation) < 10
    assert len(train) + len(validation) == 29 and not held_out["mine"] & set(train.keys)
    assert (train.split, validation.split, test.split) == ("train", "validation", "test")
    run = configure(dataset=write_folder(tmp_path / "no_test" / "mine", train=3, val=2))
    message = "mine has no test split: the validation pairs.*stand in for it"
    with pytest.warns(UserWarning, match=message):
        train, validation, test = load_splits(run)
    assert (len(train), len(validation), test.split) == (3, 2, "validation")
    assert test.keys == validation.keys


def test_a_model_is_built_as_the_configuration_says(clip_folder, tmp_path):
    tiny = build_model(configure(temperature=0.2, dropout=0.3), PAIRS)
    assert (tiny.kind, tiny.processor.size) == ("tiny", 32)
    folder = write_folder(tmp_path, train=1)
    assert build_model(configure(dataset=folder, model="tiny"), PAIRS).processor.size == 64
    assert configure(dataset=folder).model == "frozen" and configure().model == "tiny"
    assert tiny.logit_scale.item() == pytest.approx(5) and not tiny.log_logit_scale.requires_grad
    assert tiny.settings["dropout"] == 0.3
    torch.manual_seed(77)
    assert same(build_model(configure(temperature=0.2, dropout=0.3), PAIRS), tiny)
    assert not same(build_model(configure(temperature=0.2, seed=1), PAIRS), tiny)
    for folder in (clip_folder, tiny.save_pretrained(tmp_path / "trained")):
        run = configure(model=str(folder), temperature=0.1, learn_temperature=True)
        model = build_model(run, PAIRS)
        assert model.kind == ("hub" if folder == clip_folder else "tiny")
        assert model.logit_scale.item() == pytest.approx(10)
        assert model.log_logit_scale.requires_grad
    assert same(model.towers, tiny.towers) and same(model.image_head, tiny.image_head)
