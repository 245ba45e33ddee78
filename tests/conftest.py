"""Small models for the tests: real classes with random weights, saved as on the hub."""

import hypothesis
import pytest
import torch
from helpers import TEXTS, THINGS
from small_models import CROP, SIZES, VISION, save_model
from small_suite import make_small_suite

from cibr.models import DualEncoder
from cibr.models.preprocessing import train_tokenizer

hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def own_features(tmp_path, monkeypatch):
    """Each test caches features of frozen towers in a folder of its own."""
    monkeypatch.setattr("cibr.models.frozen_features.cache_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="session")
def tower_folders(tmp_path_factory):
    """Folders of a small image tower and a small text tower with its tokenizer."""
    from transformers import BertConfig, BertModel, CLIPImageProcessor, ViTConfig, ViTModel

    image, text = (str(tmp_path_factory.mktemp("towers") / name) for name in ("vit", "bert"))
    torch.manual_seed(0)
    ViTModel(ViTConfig(**VISION)).save_pretrained(image)
    CLIPImageProcessor(**CROP).save_pretrained(image)
    tokenizer = train_tokenizer(TEXTS, context=40)
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, **SIZES)
    BertModel(config).save_pretrained(text)
    tokenizer.save_pretrained(text)
    return image, text


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory):
    """A folder of a small image classification model of transformers with seven classes."""
    from transformers import CLIPImageProcessor, ViTConfig, ViTForImageClassification

    folder = str(tmp_path_factory.mktemp("classifier") / "vit")
    torch.manual_seed(1)
    config = ViTConfig(**VISION, id2label=dict(enumerate(THINGS)))
    ViTForImageClassification(config).save_pretrained(folder)
    CLIPImageProcessor(**CROP).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A folder with a small CLIPModel, its tokenizer and its image processor."""
    folder = str(tmp_path_factory.mktemp("clip") / "small-clip")
    save_model(folder)
    return folder


@pytest.fixture
def build(tower_folders, classifier_folder, clip_folder):
    """Builds a small model of a kind, always with the same weights."""
    text_tower = tower_folders[1]

    def build(kind: str, **options) -> DualEncoder:
        torch.manual_seed(2)
        if kind == "tiny":
            return DualEncoder.tiny(TEXTS, dim=16, width=4, **options)
        if kind == "names":
            return DualEncoder.names(classifier_folder, text_tower, **options)
        if kind == "staged":
            return DualEncoder.names(classifier_folder, text_tower, train_stages=1, **options)
        if kind == "frozen":
            return DualEncoder.frozen(*tower_folders, dim=16, **options)
        if kind == "frozen dual":
            return DualEncoder.frozen(clip_folder, clip_folder, dim=16, **options)
        return DualEncoder.from_pretrained(clip_folder)

    return build


@pytest.fixture
def small(tmp_path, monkeypatch):
    """The folder of the data sets of the suite `small`."""
    return make_small_suite(tmp_path, monkeypatch)
