"""Small models and pairs for the tests: real classes with random weights, saved as the hub would have them."""

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTModel,
)

from cibr.data import Pairs
from cibr.models import DualEncoder
from cibr.models.tiny import train_tokenizer

COLOURS = ["red", "green", "blue", "grey", "dark", "light", "big", "small"]
THINGS = ["cat", "dog", "bird", "tree", "house", "car", "boat"]
TEXTS = [f"a {COLOURS[i % 8]} {THINGS[i % 7]}" for i in range(56)]


def picture(i: int) -> Image.Image:
    """Noise that its number decides; module-level, so that loader workers can have it."""
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 36, 3), dtype=np.uint8))


def noise_pairs(n: int = 48, n_captions: int = 1, split: str = "train") -> Pairs:
    """Pairs of noise pictures with one caption or more; some captions are equal."""
    captions = [[TEXTS[(i + 5 * c) % len(TEXTS)] for c in range(1 + i % n_captions)] for i in range(n)]
    return Pairs("noise", split, captions, [f"picture {i}" for i in range(n)], picture)


@pytest.fixture(scope="session")
def tower_folders(tmp_path_factory):
    """Folders of a small image tower and a small text tower with its tokenizer."""
    image, text = (str(tmp_path_factory.mktemp("towers") / name) for name in ("vit", "bert"))
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    ViTModel(ViTConfig(image_size=32, patch_size=8, **sizes)).save_pretrained(image)
    CLIPImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.3, 0.4]).save_pretrained(image)
    tokenizer = train_tokenizer(TEXTS, context=40)
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **sizes)).save_pretrained(text)
    tokenizer.save_pretrained(text)
    return image, text


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A folder with a small CLIPModel, its tokenizer and its image processor."""
    folder = str(tmp_path_factory.mktemp("clip") / "small-clip")
    tokenizer = train_tokenizer(TEXTS, context=40)
    sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    ends = dict(bos_token_id=1, eos_token_id=1, pad_token_id=0)
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=40, **ends, **sizes)
    config = CLIPConfig(
        text_config=text, vision_config=dict(image_size=32, patch_size=8, **sizes), projection_dim=16
    )
    torch.manual_seed(1)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def efficientnet_folder(tmp_path_factory):
    """An image tower with blocks, as timm makes it, with random weights."""
    torch.manual_seed(3)
    folder = str(tmp_path_factory.mktemp("efficientnet"))
    about = {"input_size": [3, 64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    config = TimmWrapperConfig(architecture="tf_efficientnet_lite0", pretrained_cfg=about)
    TimmWrapperModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def build(tower_folders, clip_folder):
    """Builds a small model of a kind, always with the same weights."""

    def build(kind: str, **options) -> DualEncoder:
        torch.manual_seed(2)
        if kind == "tiny":
            return DualEncoder.tiny(TEXTS, dim=16, width=4, **options)
        if kind == "frozen":
            return DualEncoder.frozen(*tower_folders, dim=16, image_size=32, **options)
        return DualEncoder.clip(clip_folder, **options)

    return build


@pytest.fixture
def unchecked():
    """Lets wrong shapes reach our own errors when annotations are checked too."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
