"""Dual encoders of transformers: embeddings equal to those of their own classes; training, saving,
errors.
"""

import shutil
from functools import cache
from string import ascii_lowercase

import pytest
import torch
import transformers
from helpers import TEXTS, noise_pairs, picture, same
from safetensors.torch import load_file
from torch.nn.functional import normalize

from cibr.cli import main
from cibr.models import DualEncoder
from cibr.models.features import prepare
from cibr.models.io import WEIGHTS
from cibr.models.towers import train_tokenizer
from cibr.train import build_model, configure, fit

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
IDS = dict(
    vocab_size=400, max_position_embeddings=40, bos_token_id=1, eos_token_id=1, pad_token_id=0
)
TEXT, VISION, SQUARE = (
    IDS | SIZES,
    dict(image_size=32, patch_size=8) | SIZES,
    {"height": 32, "width": 32},
)
CONVOLUTIONS = dict(
    kernel_sizes=[3], in_channels=[32], out_channels=[16], strides=[1], num_block_repeats=[1]
)
CONVOLUTIONS |= dict(image_size=32, width_coefficient=1.0, depth_coefficient=1.0, expand_ratios=[1])
CROP = {"crop_size": SQUARE, "size": {"shortest_edge": 36}}
JOINT, WIDTH = dict(projection_dim=16), dict(projection_size=32)
PATCHES = dict(patch_size=16, max_num_patches=256)  # as Siglip2Processor always asks for

# By model: settings of its text tower, its vision tower and the whole, its image processor and
# settings of that.
MODELS = {
    "CLIP": (TEXT, VISION, JOINT, "CLIP", CROP),
    "MetaClip2": (TEXT, VISION, JOINT, "CLIP", CROP | {"resample": 2}),
    "CLIPSeg": (TEXT, VISION, JOINT, "ViT", {"size": SQUARE}),
    "ChineseCLIP": (TEXT, VISION, JOINT, "ChineseCLIP", {"crop_size": SQUARE, "size": SQUARE}),
    "AltCLIP": (TEXT | dict(project_dim=16, max_position_embeddings=42), VISION, JOINT, "CLIP", CROP),
    "VisionTextDualEncoder": (TEXT | dict(model_type="bert"), VISION | dict(model_type="vit"), JOINT, "ViT",
                              {"size": SQUARE, "resample": 3}),
    "Siglip": (TEXT | WIDTH, VISION, {}, "Siglip", {"size": SQUARE}),
    "Siglip2": (TEXT | WIDTH, SIZES | dict(patch_size=16, num_patches=16), {}, "Siglip2", PATCHES),
    "Align": (TEXT, CONVOLUTIONS, JOINT, "EfficientNet", {"size": SQUARE}),
}  # fmt: skip
WITHOUT_POOLED = {"Siglip", "Siglip2", "Align"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Gives the folder of a small model of a class, as the hub would have it."""

    @cache
    def folder(name: str) -> str:
        place, (text, vision, options, processor, settings) = (
            tmp_path_factory.mktemp(name),
            MODELS[name],
        )
        config = getattr(transformers, f"{name}Config")(
            text_config=text, vision_config=vision, **options
        )
        torch.manual_seed(3)
        getattr(transformers, f"{name}Model")(config).save_pretrained(place)
        getattr(transformers, f"{processor}ImageProcessor")(**settings).save_pretrained(place)
        _tokenizer(name).save_pretrained(place)
        return str(place)

    return folder


def _tokenizer(name: str):
    tokenizer = train_tokenizer(TEXTS, context=40)
    if name == "Siglip2":  # in lower case and, by default, padded on the left
        words = [
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<mask>",
            "\N{LOWER ONE EIGHTH BLOCK}",
            *ascii_lowercase,
        ]
        tokenizer = transformers.Siglip2Tokenizer(
            {word: i for i, word in enumerate(words)}, model_max_length=40
        )
    if (
        "Siglip" in name
    ):  # as google/siglip-base-patch16-224 and google/siglip2-base-patch16-naflex have it
        tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids"]
    return tokenizer


def assert_equals_transformers(model: DualEncoder, folder, images: list, texts: list[str]) -> None:
    """Compares with the class that config.json names and with the processors of transformers."""
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    padding = "max_length" if reference.config.model_type.startswith("siglip") else True
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, padding=padding, max_length=40, truncation=True, return_tensors="pt")
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    with torch.no_grad():
        image = normalize(reference.get_image_features(**pixels).pooler_output, dim=1)
        text = normalize(reference.get_text_features(**tokens).pooler_output, dim=1)
    assert model.dim == image.shape[1]
    for n in (len(images), 1):  # nor do the others of a batch matter
        assert torch.allclose(model.embed_images(images[:n]), image[:n], atol=1e-5)
        assert torch.allclose(model.embed_texts(texts[:n], truncate=True), text[:n], atol=1e-5)
    scale = (
        reference.logit_scale.exp()
        if hasattr(reference, "logit_scale")
        else 1 / reference.temperature
    )
    assert model.logit_scale.item() == pytest.approx(scale.item())


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_are_those_of_transformers_with_its_own_processors(hub, name):
    model, images = (
        DualEncoder.from_pretrained(hub(name)),
        [picture(i).resize((40, 20 + 9 * i)) for i in range(3)],
    )
    assert_equals_transformers(
        model, hub(name), images, ["a red cat", "a BIG dog", "every small bird " * 40]
    )
    widths = model.backbone.dim_image_pooled, model.backbone.dim_text_pooled
    pooled = model.encode_texts(*model.tokenize(TEXTS[:1])).pooled
    assert widths == ((None, None) if name in WITHOUT_POOLED else (32, pooled.shape[1]))


@pytest.mark.parametrize("name", ["CLIP", "Siglip", "Siglip2", "ChineseCLIP", "Align"])
def test_a_saved_model_comes_back_bit_for_bit_and_is_read_by_its_own_class(hub, tmp_path, name):
    model, images = DualEncoder.from_pretrained(hub(name)), [picture(i) for i in range(2)]
    model.set_temperature(0.05, learn=False)
    with torch.no_grad():
        list(model.backbone.model.text_model.parameters())[-1].add_(0.1)
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert same(again, model) and again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert_equals_transformers(again, tmp_path, images, TEXTS)
    assert "image_processor" in vars(transformers.AutoProcessor.from_pretrained(tmp_path))
    assert not any(
        "model" in name for name in load_file(tmp_path / WEIGHTS)
    )  # no weight is there twice


def test_siglip_texts_are_padded_to_the_context_and_long_ones_refused(hub):
    model = DualEncoder.from_pretrained(hub("Siglip"))
    ids, mask = model.tokenize(["a red cat", "a dog"])
    assert ids.shape == (2, 40) and mask.min() == 1
    with pytest.raises(ValueError, match=r"a text has \d+ tokens and the model reads 40: 'a a"):
        model.tokenize(["a " * 40, "a dog"])


# Texts are nearly one point at first: the last token, which SigLIP pools, is padding.
@pytest.mark.filterwarnings("ignore:epoch .* text_mean_cosine is")
@pytest.mark.parametrize("name", ["Siglip", "Siglip2"])
def test_siglip_trains_and_comes_back(hub, tmp_path, name):
    pairs, sizes = noise_pairs(24), dict(epochs=2, batch_size=8, micro_batch_size=4)
    config = configure(
        model=hub(name), output_dir=str(tmp_path), learning_rate=1e-4, beta=0.05, **sizes
    )
    model, before = build_model(config, pairs), build_model(config, pairs).state_dict()
    history = fit(model, pairs, noise_pairs(8, split="validation"), config)
    assert history["clip_loss"].is_monotonic_decreasing and history["step"].tolist() == [3, 6]
    moved = {
        key.split(".")[2]
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert moved == {"vision_model", "text_model", "logit_scale"}
    assert same(DualEncoder.from_pretrained(tmp_path), model)


def test_crops_go_through_the_models_own_preprocessing_and_want_square_images(hub):
    model, pairs, rows = (
        DualEncoder.from_pretrained(hub("Siglip")),
        noise_pairs(4),
        torch.tensor([2, 0]),
    )
    inputs = prepare(model, pairs, crop_scale=0.9)
    torch.manual_seed(5)
    expected = model.processor([inputs.crop(pairs.image(2))])[0]
    assert expected.shape == (3, 32, 32) and torch.equal(
        inputs[rows, rows, torch.tensor([5, 6])].images[0], expected
    )
    with pytest.raises(ValueError, match="images that keep their proportions"):
        prepare(DualEncoder.from_pretrained(hub("Siglip2")), pairs, crop_scale=0.9)


@pytest.mark.parametrize("penalty", ["mine", "soft_targets"])
def test_a_penalty_on_pooled_features_is_refused_where_there_are_none(hub, tmp_path, penalty):
    config = configure(model=hub("Siglip"), output_dir=str(tmp_path), penalty=penalty, batch_size=8)
    with pytest.raises(
        ValueError,
        match=f"{penalty}' needs a projection on each side, .* a SiglipModel, .* like CLIPModel",
    ):
        fit(build_model(config, noise_pairs()), noise_pairs(), None, config)


def test_the_command_evaluates_a_model_of_transformers(hub, capsys):
    assert main(["evaluate", hub("Siglip2"), "--data", "glyph_digits", "--limit", "20"]) == 0
    assert "accuracy@5" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
@pytest.mark.parametrize(
    "part", ["the image preprocessing: preprocessor_config", "the tokenizer: tokenizer"]
)
def test_a_model_without_a_processor_or_a_tokenizer_is_refused(hub, tmp_path, name, part):
    folder, (what, file) = shutil.copytree(hub(name), tmp_path / "part"), part.split(": ")
    for each in folder.glob(f"{file}*.json"):
        each.unlink()
    with pytest.raises(
        FileNotFoundError, match=f"cannot load {what} of folder .*Give a folder with {file}.json"
    ):
        DualEncoder.from_pretrained(folder)


def test_a_model_that_is_no_dual_encoder_is_refused(tower_folders, tmp_path):
    with pytest.raises(
        ValueError, match="is no image-text model: 'bert' has no get_image_f.*Give one such as"
    ):
        DualEncoder.from_pretrained(tower_folders[1])
    sides = {
        f"{side}_config": SIZES | dict(image_size=32) for side in ("image", "text", "multimodal")
    }
    flava = transformers.FlavaModel(
        transformers.FlavaConfig(**sides, projection_dim=16, hidden_size=32)
    )
    flava.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="FlavaModel is no dual encoder: .* no single vector. Give a model such as"
    ):
        DualEncoder.from_pretrained(tmp_path)
