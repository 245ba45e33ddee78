"""A run's configuration: presets, names of folders, and the splits of a data set."""

import pytest
import torch
from helpers import noise_pairs, picture
from small_runs import write_folder

from cibr.data import Pairs
from cibr.train import build_model, config, configure, load_splits


def preset_of(dataset, kind):
    values = config.PRESETS.get((dataset, kind), config.PRESETS["*", kind])
    return dict(zip(config.PRESET_NAMES, values, strict=True))


@pytest.mark.parametrize("model", ["tiny", "frozen", "some/clip"])
def test_presets_fill_what_is_left_at_zero_and_nothing_else(model, tmp_path):
    kind = "clip" if "/" in model else model
    for dataset in ("glyphs", str(write_folder(tmp_path / model, train=1))):
        preset = preset_of(dataset, kind)
        filled = configure(dataset=dataset, model=model, beta=0, epochs=3).to_dict()
        assert {name: filled[name] for name in preset} == preset | {"epochs": 3}
        assert filled["beta"] == 0 and isinstance(filled["beta"], float)
    assert configure(model=model, dropout=0.0, weight_decay=0.0).to_dict()["weight_decay"] == 0.0


def test_any_setting_that_changes_a_run_changes_its_folder_and_no_other_does():
    changes = dict(
        beta=0.0,
        seed=1,
        penalty="mine",
        model="frozen",
        sample=True,
        contrastive="siglip",
        epochs=3,
    )
    changes |= dict(kappa_b=20.0, group_size=2, truncate_texts=True)
    plain = configure().output_dir
    folders = [configure(**{name: value}).output_dir for name, value in changes.items()]
    assert len({plain, *folders}) == 1 + len(changes)
    assert plain.endswith("runs/glyphs-tiny-vmf-beta0.05-seed0")
    assert configure(sample=True).output_dir.startswith(f"{plain}-")
    for same in (
        dict(checkpoint_every=5),
        preset_of("glyphs", "tiny"),
    ):
        assert configure(**same).output_dir == plain
    assert configure(output_dir="here").output_dir == "here"


def test_validation_is_a_tenth_of_train_where_there_is_none_and_stands_in_for_a_test(tmp_path):
    run = configure(dataset=str(write_folder(tmp_path / "mine", train=20, test=3)))
    train, validation, test = load_splits(run)
    assert (len(train), len(validation), len(test)) == (18, 2, 3)
    assert sorted(train.keys + validation.keys) == sorted(f"{i}.png" for i in range(20))
    assert (train.split, validation.split, test.split) == ("train", "validation", "test")
    assert load_splits(run)[1].keys == validation.keys
    run = configure(dataset=str(write_folder(tmp_path / "no_test" / "mine", train=3, val=2)))
    with pytest.warns(
        UserWarning, match="mine has no test split: the validation pairs.*stand in for it"
    ):
        train, validation, test = load_splits(run)
    assert (len(train), len(validation), test.split) == (
        3,
        2,
        "validation",
    ) and test.keys == validation.keys


def test_the_seed_and_nothing_else_decides_the_weights():
    pairs = noise_pairs(8)
    first, second, other = (
        build_model(configure(seed=seed), pairs).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_model_is_built_as_the_configuration_says(clip_folder, tmp_path):
    pairs = Pairs("glyphs", "train", [["a"]], ["k"], picture)
    tiny = build_model(configure(temperature=0.2, dropout=0.3), pairs)
    assert (tiny.kind, tiny.image_size) == ("tiny", 32)
    assert tiny.logit_scale.item() == pytest.approx(5) and not tiny.log_logit_scale.requires_grad
    assert tiny.backbone.settings["dropout"] == 0.3
    run = configure(model=clip_folder, learn_temperature=True)
    clip = build_model(run, pairs)
    assert (clip.kind, clip.log_logit_scale.requires_grad) == ("clip", True)
    assert clip.logit_scale.item() == pytest.approx(1 / run.temperature)
    folder = tiny.save_pretrained(tmp_path / "trained")  # to go on from
    again = build_model(configure(model=str(folder), temperature=0.1), pairs)
    assert again.kind == "tiny" and again.logit_scale.item() == pytest.approx(10)
    assert all(
        map(torch.equal, again.backbone.state_dict().values(), tiny.backbone.state_dict().values())
    )
