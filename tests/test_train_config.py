"""A run's configuration: presets, errors before anything long starts, and the splits of a data set."""

import math

import pytest
import torch
from conftest import TEXTS, noise_pairs, picture
from PIL import ImageOps

from cibr.data import Pairs
from cibr.train import build_model, check_parameters, config, configure, load_splits


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (dict(betta=1.0), "unknown parameter 'betta', did you mean 'beta'.*Known: dataset, model, beta"),
        (dict(zzz=1), "unknown parameter 'zzz'\\. Known"),
        (dict(dataset="glyph"), "no data set 'glyph', did you mean 'glyphs'"),
        (dict(model="froze"), "unknown model 'froze', did you mean 'frozen'"),
        (dict(model=""), "unknown model ''"),
        (
            dict(estimator="vfm"),
            "unknown estimator 'vfm', did you mean 'vmf'.*Known: vmf, siblings, prototype, c",
        ),
        (dict(estimator="quantum"), "unknown estimator 'quantum'\\. Known"),
        (dict(beta=-0.1), "beta is -0.1: the penalty's weight is a finite number"),
        (dict(beta=math.nan), "beta is nan"),
        (dict(beta=math.inf), "beta is inf"),
        (dict(batch_size=1), "batch_size is 1: a contrast needs two pairs"),
        (dict(epochs=-1), "epochs is -1"),
        (dict(learning_rate=-1e-3), "learning_rate is -0.001: give a positive number"),
        (dict(temperature=0.001), "temperature is 0.001: CLIP keeps it at 0.01"),
        (dict(dropout=1.0), "dropout is 1.0: a probability below 1"),
        (dict(dropout=-0.5), "dropout is -0.5"),
        (dict(weight_decay=-2.0), "weight_decay is -2.0"),
        (dict(micro_batch_size=-1), "micro_batch_size is -1"),
        (dict(seed=-1), "seed is -1"),
        (dict(kappa_b=0.0), "kappa_b is 0.0: a concentration"),
        (dict(mixed_precision="fp8"), "mixed_precision is 'fp8'"),
        (dict(shortcut_wording="shouted"), "shortcut_wording is 'shouted': it is '' or 'keywords'"),
        (dict(shortcut_look="upside down"), "shortcut_look is 'upside down': it is 'small' or 'contours' or"),
        (dict(on_non_finite="ignore"), "on_non_finite is 'ignore': it is 'stop' or 'skip'"),
        (dict(checkpoint_every=-1), "checkpoint_every is -1: a number of steps, or 0"),
        (dict(critic_steps=0), "critic_steps is 0: one to five are usual"),
        (dict(on_error="ignore"), "on_error is 'ignore'"),
        (dict(max_skipped=3), "needs on_error='skip'"),
        (dict(epochs=2.0), "epochs is 2.0, of type float: it is of type int"),
        (dict(batch_size=True), "batch_size is True, of type bool: it is of type int"),
        (dict(learn_temperature=1), "learn_temperature is 1, of type int: it is of type bool"),
        (dict(beta="0.1"), "beta is '0.1', of type str: it is of type float"),
        (dict(model=3), "model is 3, of type int: it is of type str"),
        (dict(estimator=None), "estimator is None"),
    ],
    ids=str,
)
def test_a_wrong_parameter_is_refused_with_the_rule(parameters, message):
    with pytest.raises(ValueError, match=message):
        configure(**parameters)


@pytest.mark.parametrize("model", ["tiny", "frozen", "some/clip"])
def test_presets_fill_what_is_left_at_zero_and_nothing_else(model, tmp_path):
    kind = "clip" if "/" in model else model
    for dataset in ("glyphs", str(tmp_path)):
        preset = config.PRESETS.get((dataset, kind), config.PRESETS["*", kind])
        filled = configure(dataset=dataset, model=model, beta=0, epochs=3).to_dict()
        assert {name: filled[name] for name in preset} == preset | {"epochs": 3}
        assert filled["beta"] == 0 and isinstance(filled["beta"], float)
    assert configure(model=model, dropout=0.0, weight_decay=0.0).to_dict()["weight_decay"] == 0.0


def test_every_preset_is_itself_in_range():
    for (dataset, model), preset in config.PRESETS.items():
        name = {"clip": "some/clip"}.get(model, model)
        configure(dataset="glyphs" if dataset == "glyphs" else "flickr8k", model=name, **preset)


def test_runs_that_differ_in_what_is_compared_get_folders_of_their_own():
    runs = [dict(), dict(beta=0.0), dict(seed=1), dict(estimator="gaussian"), dict(model="frozen")]
    folders = [configure(**run).output_dir for run in runs]
    assert len(set(folders)) == len(runs) and all("runs" in folder for folder in folders)
    assert configure(output_dir="here").output_dir == "here"


def test_the_table_shows_every_setting_but_the_folder():
    table = configure(output_dir="secret").table()
    assert table.loc["beta", "value"] == "0.05" and "secret" not in table.to_string()
    assert set(table.index) == configure().to_dict().keys() - {"output_dir"}


def test_an_injected_name_that_no_parameter_has_is_found():
    namespace = {"beta": 0.1, "seed": 3, "other": 5}
    for injected in ([], ["other = 5", "# Parameters\nseed = 3\n"]):
        assert check_parameters(namespace | {"In": injected}, "beta seed") == {"beta": 0.1, "seed": 3}
    with pytest.raises(ValueError, match="unknown parameter 'betta', did you mean 'beta'.*Known: beta, seed"):
        check_parameters(namespace | {"In": ["", "# Parameters\nseed = 3\nbetta = 0.3\n"]}, "beta seed")
    with pytest.raises(ValueError, match="parameter 'seed' is not set"):
        check_parameters({"beta": 0.1}, "beta seed")


def write_folder(folder, **splits):
    """A folder of noise pictures with metadata, by the number of rows of each split."""
    for split, n in splits.items():
        (folder / split).mkdir(parents=True)
        rows = [f"{i}.png,{TEXTS[i % len(TEXTS)]}" for i in range(n)]
        (folder / split / "metadata.csv").write_text("file_name,text\n" + "\n".join(rows) + "\n")
        for i in range(n):
            picture(i).save(folder / split / f"{i}.png")
    return folder


def test_a_folder_without_validation_gives_a_tenth_of_its_training_pairs(tmp_path):
    run = configure(dataset=str(write_folder(tmp_path / "mine", train=20, test=3)))
    train, validation, test = load_splits(run)
    assert (len(train), len(validation), len(test)) == (18, 2, 3)
    assert sorted(train.keys + validation.keys) == sorted(f"{i}.png" for i in range(20))
    assert (train.split, validation.split, test.split) == ("train", "validation", "test")
    assert load_splits(run)[1].keys == validation.keys


def test_a_folder_without_a_test_is_tested_on_validation_and_says_so(tmp_path):
    run = configure(dataset=str(write_folder(tmp_path / "mine", train=3, validation=2)))
    train, validation, test = load_splits(run)
    assert (len(train), len(validation), test.split) == (3, 2, "validation") and test.keys == validation.keys


def test_harder_training_sets_leave_validation_and_test_alone_but_for_the_style_that_is_held_out(tmp_path):
    folder = str(write_folder(tmp_path / "mine", train=20, validation=4, test=3))
    plain = load_splits(configure(dataset=folder))
    train, *others = load_splits(configure(dataset=folder, train_fraction=0.5, caption_noise=0.4))
    assert len(train) == 10 and set(train.keys) < set(plain[0].keys)
    assert sum(
        plain[0].captions[plain[0].keys.index(k)] != c for k, c in zip(train.keys, train.captions, strict=True)
    )
    assert [pairs.captions for pairs in others] == [pairs.captions for pairs in plain[1:]]
    tied = load_splits(configure(dataset=folder, shortcut_word=TEXTS[0].split()[1], shortcut_exceptions=0.2))
    assert len(tied[0]) == 24 and tied[0].captions == [*plain[0].captions, *tied[0].captions[20:]]
    spoken = dict(shortcut_word=TEXTS[0].split()[1], shortcut_wording="keywords")
    tied = load_splits(configure(dataset=folder, **spoken))
    assert tied[0].captions[:20] != plain[0].captions
    assert [pairs.captions for pairs in tied[1:]] == [pairs.captions for pairs in plain[1:]]
    assert [pairs.keys for pairs in tied[1:]] == [pairs.keys for pairs in plain[1:]]
    train, validation, test = load_splits(configure(dataset=folder, train_fraction=0.5, views=True))
    assert len(train) == 40 and train.labels.bincount().tolist() == [4] * 10
    assert validation.image(0).tobytes() == ImageOps.invert(plain[1].image(0)).tobytes()
    assert test.image(0).tobytes() == plain[2].image(0).tobytes()


def test_too_few_pairs_to_hold_out_any_are_refused(tmp_path):
    run = configure(dataset=str(write_folder(tmp_path / "mine", train=9, test=1)))
    with pytest.raises(ValueError, match="mine has 9 pairs and no validation split: it takes ten"):
        load_splits(run)


def test_the_seed_and_nothing_else_decides_the_weights():
    pairs = noise_pairs(8)
    first, second, other = (build_model(configure(seed=seed), pairs).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_model_is_built_as_the_configuration_says(clip_folder):
    pairs = Pairs("glyphs", "train", [["a"]], ["k"], picture)
    tiny = build_model(configure(temperature=0.2, dropout=0.3), pairs)
    assert (tiny.kind, tiny.image_size, tiny.learn_variance) == ("tiny", 32, False)
    assert tiny.logit_scale.item() == pytest.approx(5) and not tiny.log_logit_scale.requires_grad
    assert tiny.backbone.settings["dropout"] == 0.3
    run = configure(model=clip_folder, estimator="gaussian", learn_temperature=True)
    clip = build_model(run, pairs)
    assert (clip.kind, clip.learn_variance, clip.log_logit_scale.requires_grad) == ("clip", True, True)
    assert clip.logit_scale.item() == pytest.approx(1 / run.temperature)
