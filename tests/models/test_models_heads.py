"""Heads against twins written with functions, and sums of their scores."""

import pytest
import torch
import torch.nn.functional as F
from helpers import same

from cibr import DualEncoder
from cibr.models import RegularisedCCA, SummedHead
from cibr.models.heads import LinearHead, ResidualHead
from cibr.models.parts import build_head, describe_head

POOLED = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("is_training", [True, False])
def test_a_residual_head_drops_features_and_hidden_units_in_training_alone(is_training):
    head = ResidualHead(dim=4, dim_image=6, dim_text=6, dropout=0.7).train(is_training)
    for side, project in ((head.image, head.project_images), (head.text, head.project_texts)):
        torch.manual_seed(3)
        found = project(POOLED)
        torch.manual_seed(3)
        linear, hidden = side.linear, side.residual[2]
        x = F.linear(F.dropout(POOLED, 0.7, is_training), linear.weight, linear.bias)
        update = F.linear(F.dropout(F.gelu(x), 0.7, is_training), hidden.weight, hidden.bias)
        expected = F.layer_norm(x + update, (4,), side.norm.weight, side.norm.bias)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("is_training", [True, False])
def test_a_linear_head_normalises_drops_and_maps(is_training):
    head = LinearHead(dim=4, dim_image=6, dim_text=6, dropout=0.4).train(is_training)
    torch.manual_seed(3)
    found = head.project_images(POOLED)
    torch.manual_seed(3)
    dropped = F.dropout(F.layer_norm(POOLED, (6,)), 0.4, is_training)
    torch.testing.assert_close(found, dropped @ head.image[2].weight.T)


@pytest.mark.parametrize("kind", ["tiny", "frozen"])
def test_a_model_has_the_dropout_that_it_is_built_with(build, kind):
    model = build(kind, dropout=0.9).train()
    pooled = torch.randn(2000, model.dim_image_pooled)
    inputs = []
    linear = model.head.image.linear if kind == "frozen" else model.head.image[2]
    linear.register_forward_hook(lambda module, given, output: inputs.append(given[0]))
    model.encode_images(pooled)
    assert (inputs[0] == 0).float().mean().item() == pytest.approx(0.9, abs=0.01)


def cosines(head, images, texts):
    projected = head.project_images(images), head.project_texts(texts)
    image, text = (F.normalize(x, dim=1) for x in projected)
    return image @ text.T


def test_the_cosines_of_a_sum_are_the_weighted_mean_of_those_of_its_heads():
    texts = torch.randn(30, 5)
    heads = [ResidualHead(dim, 6, 5, dropout=0.0).eval() for dim in (4, 3, 8)]
    summed = SummedHead(heads, cosine_weights=[1.0, 2.0, 0.5])
    first, second, third = (cosines(head, POOLED, texts) for head in heads)
    expected = (first + 2 * second + 0.5 * third) / 3.5
    torch.testing.assert_close(cosines(summed, POOLED, texts), expected)
    assert summed.dim == 15


def test_a_head_is_built_again_from_its_description():
    sums = SummedHead([ResidualHead(4, 6, 5, dropout=0.1), RegularisedCCA(3, 6, 5)])
    head = SummedHead([sums, LinearHead(2, 6, 5, dropout=0.2)], cosine_weights=[0.5, 2.0])
    again = build_head(describe_head(head))
    assert describe_head(again) == describe_head(head)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval().project_images(POOLED), head.eval().project_images(POOLED))


def test_a_model_with_a_weighted_sum_comes_back_bit_for_bit(build, tmp_path):
    model = build("frozen")
    second = ResidualHead(5, model.dim_image_pooled, model.dim_text_pooled, dropout=0.3)
    model.head = SummedHead([model.head, second], cosine_weights=[1.0, 0.3])
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert same(again, model) and again.dim == 21
    pooled = torch.randn(9, model.dim_text_pooled)
    model.eval()
    assert torch.equal(again.encode_texts(pooled).features, model.encode_texts(pooled).features)
