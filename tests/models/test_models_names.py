"""A start that knows names: its formula, its classifiers and what is refused."""

import json
import os

import pytest
import torch
import torch.nn.functional as F
import transformers
from helpers import THINGS, picture
from small_models import CROP, VISION

from cibr.data.photos import load_classes
from cibr.models import DualEncoder, NamesHead
from cibr.models.dual_encoder import IMAGE_TOWER, TEXT_TOWER
from cibr.models.names import Classifier, load_classifier

IMAGES = [picture(i) for i in range(4)]


def unit(vector):
    return vector / vector.norm()


@torch.no_grad()
def test_an_image_starts_at_the_expected_text_of_its_class_and_a_text_at_itself(
    classifier_folder, tower_folders
):
    model = DualEncoder.names(classifier_folder, tower_folders[1], softmax_temperature=0.7)
    texts = model.pool_texts(THINGS)
    names = torch.stack([unit(text) for text in texts])
    centre = sum(names) / len(names)
    vit = transformers.ViTForImageClassification.from_pretrained(classifier_folder).eval()
    logits = vit(pixel_values=model.preprocess(IMAGES)).logits / 0.7
    for found, row in zip(model.embed_images(IMAGES), logits, strict=True):
        probabilities = row.exp() / row.exp().sum()
        expected = sum(p * name for p, name in zip(probabilities, names, strict=True))
        torch.testing.assert_close(found, unit(expected - centre))
    for found, name in zip(model.embed_texts(THINGS), names, strict=True):
        torch.testing.assert_close(found, unit(name - centre))


@torch.no_grad()
def test_the_two_maps_and_the_centre_enter_as_the_formula_says():
    head = NamesHead(dim_image=6, dim_text=4, n_classes=3, softmax_temperature=2.0).eval()
    for parameter in head.parameters():
        parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    x = torch.randn(6, generator=torch.Generator().manual_seed(1))
    y = torch.randn(4, generator=torch.Generator().manual_seed(2))
    p = ((head.classifier.weight @ x + head.classifier.bias) / 2).softmax(0)
    expected = unit(p @ head.class_vectors - head.centre) + head.image_map.weight @ x
    torch.testing.assert_close(head.project_images(x[None])[0], expected)
    expected = head.text_map.weight @ (unit(y) - head.centre)
    torch.testing.assert_close(head.project_texts(y[None])[0], expected)


def test_training_moves_every_part_of_the_start(build):
    model = build("names").train()
    generator = torch.Generator().manual_seed(0)
    image = model.encode_images(torch.randn(8, model.dim_image_pooled, generator=generator))
    text = model.encode_texts(torch.randn(8, model.dim_text_pooled, generator=generator))
    (image.features * text.features).sum().backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_dropout_is_of_the_features_of_both_sides_in_training_alone(build):
    model = build("names", dropout=0.5)
    images = torch.randn(2, model.dim_image_pooled)
    texts = torch.randn(2, model.dim_text_pooled)
    for encode, pooled in ((model.encode_images, images), (model.encode_texts, texts)):
        model.eval()
        assert torch.equal(encode(pooled).features, encode(pooled).features)
        model.train()
        assert not torch.equal(encode(pooled).features, encode(pooled).features)


@torch.no_grad()
def test_a_vit_is_pooled_where_its_classifier_reads(classifier_folder, tower_folders):
    model = DualEncoder.frozen(classifier_folder, tower_folders[1], dim=16)
    vit = transformers.ViTForImageClassification.from_pretrained(classifier_folder).eval()
    pixels = model.preprocess(IMAGES)
    pooled = model.encode_images(pixels).pooled
    classifier = load_classifier(classifier_folder)
    logits = pooled @ classifier.weight.T + classifier.bias
    torch.testing.assert_close(logits, vit(pixel_values=pixels).logits)
    assert classifier.texts == THINGS


def test_imagenets_classes_get_their_definitions(tmp_path):
    config = transformers.TimmWrapperConfig(architecture="resnet10t", num_labels=1000)
    transformers.TimmWrapperForImageClassification(config).save_pretrained(tmp_path)
    as_of_timm = {"architecture": "resnet10t", "num_classes": 1000, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(as_of_timm))
    texts = load_classifier(str(tmp_path)).texts
    assert texts[207] == "golden retriever: an English breed having a long silky golden coat"
    assert len(texts) == 1000 and texts[1].startswith("goldfish, Carassius auratus: small")


def test_a_tower_without_a_classifier_is_refused_by_name(tower_folders):
    with pytest.raises(ValueError, match="vit' has no classifier, so it knows no names: give"):
        DualEncoder.names(*tower_folders)


def test_classes_without_names_need_texts_one_for_each(tmp_path, tower_folders):
    vit = transformers.ViTForImageClassification(transformers.ViTConfig(**VISION, num_labels=3))
    vit.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(**CROP).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="classes of .* have no names: give class_texts"):
        load_classifier(str(tmp_path))
    with pytest.raises(ValueError, match="class_texts has 2 texts: give one for each of the 3"):
        load_classifier(str(tmp_path), ["a cat", "a dog"])
    model = DualEncoder.names(str(tmp_path), tower_folders[1], class_texts=THINGS[:3])
    assert model.head.n_classes == 3


def test_a_layer_within_the_tower_is_not_taken_for_the_classifier(tmp_path, tower_folders):
    config = transformers.ViTConfig(**VISION, id2label={i: f"thing {i}" for i in range(32)})
    vit = transformers.ViTForImageClassification(config).eval()  # as many classes as dimensions
    vit.save_pretrained(tmp_path)
    transformers.CLIPImageProcessor(**CROP).save_pretrained(tmp_path)
    assert torch.equal(load_classifier(str(tmp_path)).weight, vit.classifier.weight)


def test_a_classifier_of_several_layers_is_refused_by_name(classifier_folder, monkeypatch):
    monkeypatch.setattr("cibr.models.names.load_image_classifier", lambda _: (None, None))
    with pytest.raises(ValueError, match="classifier of .*vit' is not one linear layer: give"):
        load_classifier(classifier_folder)


def test_the_shipped_start_needs_no_tower_for_features(monkeypatch):
    monkeypatch.setattr("cibr.models.named_towers.load_named_towers", None)
    monkeypatch.setattr("cibr.models.names.load_image_classifier", None)
    model = DualEncoder.from_pretrained("names")
    assert (model.dim, model.dim_image_pooled, model.head.n_classes) == (384, 1280, 1000)
    embedded = model.encode_images(torch.rand(3, 1280)).features
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    assert model.is_pretrained and not model.training


@pytest.mark.models
@pytest.mark.skipif(not os.environ.get("CIBR_MODELS"), reason="no CIBR_MODELS")
def test_the_shipped_start_is_the_towers_own_in_half_precision():
    stored = load_classes((IMAGE_TOWER, TEXT_TOWER))
    own = DualEncoder.names(class_texts=stored.texts)
    assert load_classifier(IMAGE_TOWER).texts == stored.texts
    shipped = DualEncoder.names()
    for name, weights in own.head.state_dict().items():
        found = shipped.head.state_dict()[name]
        torch.testing.assert_close(found, weights, rtol=1e-3, atol=1e-4, msg=name)


def test_classes_of_other_towers_are_not_taken_for_the_shipped_ones():
    assert load_classes((IMAGE_TOWER, "some/bert")) is None


def test_a_start_can_be_made_again_from_its_classifier(build):
    model = build("names")
    head = NamesHead(**model.head.settings())
    classifier = Classifier(model.head.classifier.weight, model.head.classifier.bias, THINGS)
    head.start_at(classifier, model.pool_texts(THINGS))
    for name, weights in head.state_dict().items():
        assert torch.equal(weights, model.head.state_dict()[name]), name


def test_a_text_near_a_class_finds_its_images(build):
    model = build("names")
    with torch.no_grad():  # a classifier that is sure of a class for each picture
        pooled = model.encode_images(model.preprocess(IMAGES)).pooled
        model.head.classifier.weight[:4] = 50 * F.normalize(pooled - pooled.mean(0))
        model.head.classifier.bias.zero_()
        model.head.classifier.bias[:4] = -(model.head.classifier.weight[:4] @ pooled.mean(0))
    cosines = model.embed_texts(THINGS[:4]) @ model.embed_images(IMAGES).T
    assert cosines.argmax(1).tolist() == [0, 1, 2, 3]
