"""Dual encoders of transformers: embeddings equal to those of their own classes; training, saving,
errors.
"""

import json
import shutil
from functools import cache

import pytest
import torch
import transformers
from helpers import TEXTS, Crafted, picture, same
from small_models import MODELS, save_model
from torch.nn.functional import normalize

from cibr.models import DualEncoder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Gives the folder of a small model of a class, as the hub would have it."""

    @cache
    def folder(name: str) -> str:
        place = tmp_path_factory.mktemp(name)
        save_model(place, name)
        return str(place)

    return folder


def assert_equals_transformers(model: DualEncoder, folder) -> None:
    """Compares with the class that config.json names and with the processors of transformers."""
    images = [picture(i).resize((40, 20 + 9 * i)) for i in range(3)]
    texts = ["a red cat", "a BIG dog", "every small bird " * 40]
    reference = transformers.AutoModel.from_pretrained(folder).eval()
    padding = "max_length" if reference.config.model_type == "siglip" else True
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(texts, padding=padding, max_length=40, truncation=True, return_tensors="pt")
    pixels = transformers.AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt")
    with torch.no_grad():
        image = normalize(reference.get_image_features(**pixels).pooler_output, dim=1)
        text = normalize(reference.get_text_features(**tokens).pooler_output, dim=1)
    assert model.dim == image.shape[1] and not model.training
    for n in (3, 1):  # nor do the others of a batch matter
        assert torch.allclose(model.embed_images(images[:n]), image[:n], atol=1e-5)
        assert torch.allclose(model.embed_texts(texts[:n]), text[:n], atol=1e-5)
    assert model.logit_scale.item() == pytest.approx(reference.logit_scale.exp().item())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_equals_transformers_and_so_does_what_it_saves(hub, tmp_path, name):
    model = DualEncoder.from_pretrained(hub(name))
    assert_equals_transformers(model, hub(name))
    model.set_temperature(0.05, learn=False)
    with torch.no_grad():
        list(model.towers.model.text_model.parameters())[-1].add_(0.1)
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert same(again, model) and again.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert_equals_transformers(again, tmp_path)


def test_features_of_a_model_without_projections_take_the_place_of_pooled_ones(hub):
    model = DualEncoder.from_pretrained(hub("Siglip"))
    assert (model.dim_image_pooled, model.dim_text_pooled) == (None, None)
    encoded = model.encode_texts(*model.tokenize(TEXTS[:3]))
    assert torch.equal(normalize(encoded.pooled, dim=1), encoded.features)
    encoded.features[:, 0].sum().backward()
    assert model.towers.model.text_model.head.weight.grad.abs().sum() > 0


def test_siglip_texts_are_padded_and_cut_to_the_context(hub):
    model = DualEncoder.from_pretrained(hub("Siglip"))
    ids, mask = model.tokenize(["a red cat", "a dog"])
    assert ids.shape == (2, 40) and mask.min() == 1
    assert ids[1, -1] == model.tokenizer.pad_token_id
    assert model.tokenize(["a dog", "a " * 80])[0].shape == (2, 40)


def test_a_model_that_is_no_dual_encoder_is_refused(tower_folders):
    with pytest.raises(ValueError, match="BertModel is not a dual encoder: give a model such as"):
        DualEncoder.from_pretrained(tower_folders[1])


def test_crafted_pickle_refused(build, tmp_path):
    ran = tmp_path / "ran"
    frozen = build("frozen").save_pretrained(tmp_path / "frozen")
    hub = build("hub").save_pretrained(tmp_path / "hub")
    for name, folder in (("frozen", frozen / "image_tower"), ("hub", hub)):
        (folder / "model.safetensors").unlink()
        torch.save({"logit_scale": Crafted(ran)}, folder / "pytorch_model.bin")
        with pytest.raises((FileNotFoundError, ValueError), match="[Ww]eights.only"):
            DualEncoder.from_pretrained(tmp_path / name)
        assert not ran.exists()
    torch.load(hub / "pytorch_model.bin", weights_only=False)
    assert ran.exists()  # the code in the file would have run


def test_code_in_a_model_s_folder_does_not_run_whatever_the_answer(hub, tmp_path, monkeypatch):
    folder = shutil.copytree(hub("CLIP"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "evil"}
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'it ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises((FileNotFoundError, ValueError), match="model"):
        DualEncoder.from_pretrained(str(folder))
    assert not (tmp_path / "it ran").exists()


def test_projections_of_different_widths_are_told_apart(tmp_path):
    save_model(tmp_path)
    model = transformers.CLIPModel.from_pretrained(tmp_path)
    model.config.vision_config.hidden_size = 48
    transformers.CLIPModel(model.config).save_pretrained(tmp_path)
    model = DualEncoder.from_pretrained(tmp_path)
    assert (model.dim_image_pooled, model.dim_text_pooled, model.dim) == (48, 32, 16)


def test_weights_in_half_precision_are_loaded_in_float32(hub, tmp_path):
    folder = shutil.copytree(hub("CLIP"), tmp_path / "half")
    transformers.CLIPModel.from_pretrained(folder).half().save_pretrained(folder)
    model = DualEncoder.from_pretrained(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_model_without_its_tokenizer_is_refused(hub, tmp_path):
    folder = shutil.copytree(hub("CLIP"), tmp_path / "model")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match="cannot load .*model'.*okenizer"):
        DualEncoder.from_pretrained(folder)


def test_a_load_leaves_the_messages_of_transformers_as_they_were(hub):
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        DualEncoder.from_pretrained(hub("CLIP"))
        assert logging.get_verbosity() == logging.INFO and logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before[0])
        if not before[1]:
            logging.disable_progress_bar()
