"""Last blocks of a frozen image tower that train: a copy under the heads, over maps that are computed once."""

import pytest
import torch
from conftest import noise_pairs, picture

from cibr import DualEncoder, inputs, interpret
from cibr.inputs import digest_model, embed_pairs, prepare
from cibr.train import configure, fit
from cibr.train.optimise import PRETRAINED_SHARE, build_optimizer

PAIRS, HELD_OUT = noise_pairs(24), noise_pairs(8, split="validation")


@pytest.fixture
def build(efficientnet_folder, tower_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "data_folder", lambda: tmp_path / "data")

    def build(n_blocks: int) -> DualEncoder:
        torch.manual_seed(2)
        return DualEncoder.frozen(
            efficientnet_folder, tower_folders[1], dim=16, image_size=64, trained_blocks=n_blocks
        ).eval()

    return build


def pixels_of(model: DualEncoder) -> torch.Tensor:
    return model.normalise(model.preprocess([picture(i) for i in range(4)]))


@pytest.mark.parametrize("n_blocks", [1, 3])
def test_a_model_starts_as_the_frozen_one_and_its_blocks_alone_take_gradients(build, n_blocks):
    model, frozen = build(n_blocks).train(), build(0)
    backbone = model.backbone
    assert not any(module.training for module in backbone.image_top.modules())  # batch statistics stay
    assert torch.equal(model.eval().encode_images(pixels_of(model)).features,
                       frozen.encode_images(pixels_of(frozen)).features)  # fmt: skip
    model.encode_images(pixels_of(model)).features[:, 0].sum().backward()
    assert all(p.grad is not None for p in backbone.image_top.parameters())
    assert all(p.grad is None for p in backbone.image_tower.parameters())
    assert {name.split(".")[1] for name in model.own_state() if "image" in name} == {"image_top", "image_head"}


@pytest.mark.filterwarnings("ignore:.*image embeddings are nearly one point")  # as random towers have it
def test_training_moves_the_blocks_and_leaves_the_tower(build, tmp_path):
    config = configure(model="frozen", trained_blocks=1, epochs=2, batch_size=8, learning_rate=1e-2,
                       output_dir=str(tmp_path / "out"))  # fmt: skip
    model, before = build(1), build(1).state_dict()
    fit(model, PAIRS, HELD_OUT, config)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[1] for name in moved if "image" in name} == {"image_top", "image_head"}
    loaded = DualEncoder.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.encode_images(pixels_of(loaded)).features,
                       model.encode_images(pixels_of(model)).features)  # fmt: skip
    kept, _ = embed_pairs(loaded, prepare(loaded, HELD_OUT))
    assert torch.allclose(kept, loaded.embed_images(list(HELD_OUT.images())), atol=1e-5)


def test_what_is_kept_of_a_set_depends_on_how_many_blocks_train_and_not_on_their_weights(build):
    shapes = [prepare(build(n), PAIRS).images.shape for n in (0, 1, 2)]
    assert shapes == [(24, 1280), (24, 192, 2, 2), (24, 112, 4, 4)]
    assert len({digest_model(build(n)).image for n in (0, 1, 2)}) == 3
    trained = build(1)
    with torch.no_grad():
        trained.backbone.image_top[0][0].conv_pw.weight.mul_(2)
    assert digest_model(trained).image == digest_model(build(1)).image
    assert digest_model(trained).model != digest_model(build(1)).model


def test_blocks_that_start_good_move_slowly_and_do_not_decay(build):
    config = configure(model="frozen", trained_blocks=1, learning_rate=1e-3, weight_decay=0.5)
    model = build(1)
    groups = build_optimizer(model, config, 100)[0].param_groups
    blocks = {id(p) for p in model.backbone.image_top.parameters()}
    of_blocks = [group for group in groups if {id(p) for p in group["params"]} & blocks]
    assert [{id(p) for p in group["params"]} for group in of_blocks] == [blocks]
    assert of_blocks[0]["weight_decay"] == 0 and {group["weight_decay"] for group in groups} == {0, 0.5}
    assert of_blocks[0]["max_lr"] == pytest.approx(PRETRAINED_SHARE * 1e-3)
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("n_blocks", [0, 1, 3])
def test_maps_of_places_go_through_the_trained_blocks(build, n_blocks):
    model = build(n_blocks)
    pixels = pixels_of(model)
    if n_blocks:
        with torch.no_grad():
            model.backbone.image_top[0][0].bn1.weight.mul_(2)
    lower, upper = interpret.split_image_tower(model)
    whole = model.encode_images(pixels).features
    assert lower(pixels).shape == (4, 112, 4, 4)
    assert torch.allclose(upper(lower(pixels)), whole, atol=1e-5)
    scrambled = interpret.scrambled(model)
    assert n_blocks == 0 or not torch.equal(
        scrambled.backbone.image_top[0][0].conv_pw.weight, model.backbone.image_top[0][0].conv_pw.weight
    )


def test_blocks_that_are_not_there_are_refused(tower_folders, build):
    with pytest.raises(ValueError, match="trained_blocks is 7: the image tower has 7, and one stays fixed"):
        build(7)
    with pytest.raises(ValueError, match="tower of type ViTModel has no blocks that are known"):
        DualEncoder.frozen(*tower_folders, trained_blocks=1)
    with pytest.raises(ValueError, match="trained_blocks is for model 'frozen'; 'tiny' is trained whole"):
        configure(model="tiny", trained_blocks=1)
