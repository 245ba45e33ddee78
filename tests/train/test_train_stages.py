"""Towers whose last stages are trained."""

import copy
import os
from dataclasses import replace

import pytest
import torch
import transformers
from helpers import noise_pairs, same
from small_runs import PAIRS, fail_before, settings
from twin import plain_run

from cibr import DualEncoder, fit
from cibr.models import StagedTowers
from cibr.models.inputs import prepare
from cibr.models.named_towers import stages_of
from cibr.train import build_model, configure
from cibr.train.loop import Training

STAGED = dict(model="names", train_stages=1, beta=0.1)


def all_weights(model):
    """Copies of all weights of both towers."""
    return {name: x.clone() for name, x in model.towers.loaded.named_parameters()}


def test_only_the_last_stages_of_both_towers_are_trained(build, tmp_path):
    model = build("staged")
    before = all_weights(model)
    fit(model, PAIRS, None, settings(tmp_path, **STAGED))
    after = all_weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    last = {name for name in before if "vit.layers.1." in name or "encoder.layer.1." in name}
    after_last = {f"image_tower.model.vit.layernorm.{name}" for name in ("weight", "bias")}
    assert moved == last | after_last


def test_frozen_parts_stay_out_of_state_and_folder(build, tmp_path):
    model = build("staged")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    n_of_state = sum(weights.numel() for weights in model.state_dict().values())
    assert n_of_state == sum(parameter.numel() for parameter in trained)
    n_of_towers = sum(x.numel() for x in model.towers.loaded.parameters())
    n_staged = n_of_state - sum(x.numel() for x in build("names").state_dict().values())
    assert 0 < n_staged < n_of_towers


def test_a_step_over_trained_stages_equals_a_plain_one_however_it_is_cut(build, tmp_path):
    for micro_batch_size in (None, 3):
        config = settings(tmp_path / "out", **STAGED, seed=3, micro_batch_size=micro_batch_size)
        model = build("staged").double()
        twin = copy.deepcopy(model)
        Training(model, config, prepare(model, PAIRS)).run()
        plain_run(config, twin)
        for found, expected in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_run_that_was_stopped_resumes_bit_for_bit(build, tmp_path):
    config = settings(tmp_path / "whole", **STAGED, save_steps=2)
    fit(whole := build("staged"), PAIRS, None, config)
    stopped = replace(config, output_dir=str(tmp_path / "stopped"))
    with pytest.MonkeyPatch.context() as patch:
        fail_before(4, EOFError, patch.setattr)
        with pytest.raises(EOFError):
            fit(build("staged"), PAIRS, None, stopped)
    assert (tmp_path / "stopped" / "checkpoint.pt").exists()
    fit(resumed := build("staged"), PAIRS, None, stopped)
    assert same(resumed, whole)
    assert same(DualEncoder.from_pretrained(tmp_path / "stopped"), whole)


def test_a_copy_of_a_model_has_towers_of_its_own(build):
    model = build("staged")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.towers.image_stages[0].add_(1)
    owned = {id(parameter) for parameter in twin.towers.loaded.parameters()}
    assert id(twin.towers.image_stages[0]) in owned
    assert not torch.equal(model.towers.image_stages[0], twin.towers.image_stages[0])


def test_towers_stay_in_eval_mode(build):
    model = build("staged").train()
    assert model.head.training
    assert not any(module.training for module in model.towers.loaded.modules())


def test_more_stages_than_a_tower_has_are_refused_by_name(classifier_folder, tower_folders):
    with pytest.raises(ValueError, match="vit' has 2 stages: train at most so many"):
        DualEncoder.names(classifier_folder, tower_folders[1], train_stages=3)


@pytest.mark.parametrize("n_stages", [0, -1])
def test_no_stages_are_not_all_of_them(classifier_folder, tower_folders, n_stages):
    with pytest.raises(ValueError, match=f"train_stages is {n_stages}: give a whole number from 1"):
        StagedTowers(classifier_folder, tower_folders[1], n_stages=n_stages)


def test_a_dual_encoder_is_fine_tuned_as_itself(clip_folder):
    with pytest.raises(ValueError, match="is a dual encoder: fine-tune it as a model itself"):
        StagedTowers(clip_folder, clip_folder, n_stages=1)


def test_features_without_pictures_are_refused_with_the_way_out():
    pairs = noise_pairs()
    pairs.load = None
    config = configure(dataset="photos", model="names", train_stages=1)
    with pytest.raises(ValueError, match="noise has features and no pictures.*give dataset a fold"):
        build_model(config, pairs)


def test_stages_are_the_list_with_most_weights_and_there_must_be_one():
    # It also has a list of patch embeddings beside that of its stages.
    config = transformers.PvtConfig(
        image_size=32, hidden_sizes=[32] * 4, depths=[1] * 4, num_attention_heads=[1] * 4
    )
    pvt = transformers.PvtModel(config)
    stages = stages_of(pvt)
    for stage, block in zip(stages[:3], pvt.encoder.block, strict=False):
        assert list(map(id, stage)) == list(map(id, block.parameters()))
    assert len(stages) == 4
    with pytest.raises(ValueError, match="Linear has no stages: leave train_stages out"):
        stages_of(torch.nn.Linear(2, 2))


@pytest.mark.models
@pytest.mark.skipif(not os.environ.get("CIBR_MODELS"), reason="no CIBR_MODELS")
def test_stages_of_the_small_towers_are_blocks_and_layers():
    towers = DualEncoder.frozen().towers.loaded
    image = stages_of(towers.image_tower)
    text = stages_of(towers.text_tower)
    assert (len(image), len(text)) == (7, 6)
    n_image = sum(parameter.numel() for stage in image for parameter in stage)
    stem = towers.image_tower.timm_model.conv_stem.weight
    norm = towers.image_tower.timm_model.bn1
    n_stem = stem.numel() + norm.weight.numel() + norm.bias.numel()
    assert n_image + n_stem == sum(x.numel() for x in towers.image_tower.parameters())
