"""Training the last stages of towers from what the frozen ones before them compute once.

The stages of a tower that stay frozen give an image or a text the same activations in every epoch.
So they run once, `activations` keeps what the first trained stage reads, and `keep_trained_stages`
takes them out of the towers, which then read activations in place of pixels and token ids. Training
is the same, up to rounding, in a fraction of the time.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor, nn

from cibr.data import Features, Pairs
from cibr.data.photos import strings
from cibr.models import DualEncoder
from cibr.models.inputs import Inputs
from cibr.models.named_towers import StagedTowers

_IMAGES_AT_ONCE = 16  # stay in a CPU's cache
_TEXTS_AT_ONCE = 64


class _Reached(Exception):
    """Ends a forward pass."""


class _PassedOn(nn.Module):
    """In place of the embeddings of a text tower, whose input is past them already."""

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        return input_ids


@torch.no_grad()
def activations(model: DualEncoder, pairs: Pairs) -> Inputs:
    """What the first trained stages read of pairs with pictures.

    Args:
        model: a model whose towers are an EfficientNet of timm and a BERT, before
            `keep_trained_stages`.
        pairs: with pictures.

    Returns:
        Inputs of the model after `keep_trained_stages`: activations of the images [n, c, h, w], and
        of the different texts, captions and prompts, with their mask, [m, t, q] and [m, t]. Texts
        are those of `strings(pairs)`, each with its own label.
    """
    image_stage, text_stage = _first_trained(model.towers)
    images = torch.cat(
        [
            _read_by(image_stage, model.towers.image_pooled, model.preprocess([*part.images()]))
            for part in map(pairs.subset, torch.arange(len(pairs)).split(_IMAGES_AT_ONCE))
        ]
    )
    texts = strings(pairs)
    ids, mask = model.tokenize(texts)
    states = torch.zeros(*ids.shape, model.towers.dim_text)
    by_length = mask.sum(1).argsort(stable=True)
    for rows in by_length.split(_TEXTS_AT_ONCE):  # of like lengths: little is padding
        longest = int(mask[rows].sum(1).max())
        tokens = ids[rows, :longest], mask[rows, :longest]
        states[rows, :longest] = _read_by(text_stage, model.towers.text_pooled, *tokens)
    return Inputs(pairs, images, (states, mask), torch.arange(len(texts)))


def keep_trained_stages(towers: StagedTowers) -> None:
    """Takes the frozen stages out of towers, which then read `activations`."""
    n = towers.n_stages
    image_tower = towers.loaded.image_tower.timm_model
    image_tower.conv_stem = nn.Identity()
    image_tower.bn1 = nn.Identity()
    image_tower.blocks = image_tower.blocks[-n:]
    text_tower = towers.loaded.text_tower
    text_tower.embeddings = _PassedOn()
    text_tower.encoder.layer = text_tower.encoder.layer[-n:]


def training_inputs(inputs: Inputs) -> Inputs:
    """Inputs whose texts are the captions of the pairs in their order, with the pairs' labels."""
    pairs = inputs.pairs
    row_of_text = {text: row for row, text in enumerate(strings(pairs))}
    rows = torch.tensor([row_of_text[text] for text in pairs.texts()])
    texts = tuple(tensor[rows] for tensor in inputs.texts)
    return replace(inputs, texts=texts, labels=pairs.match_labels()[pairs.text_to_image()])


@torch.no_grad()
def with_pooled(model: DualEncoder, inputs: Inputs) -> Pairs:
    """Pairs with the pooled features that trained towers compute of their activations.

    Args:
        model: after `keep_trained_stages`.
        inputs: of `activations`.
    """
    pairs = inputs.pairs
    towers = model.towers
    images = torch.cat([towers.image_pooled(part) for part in inputs.images.split(_TEXTS_AT_ONCE)])
    _, mask = inputs.texts
    texts = torch.zeros(len(mask), towers.dim_text)
    for rows in mask.sum(1).argsort(stable=True).split(_TEXTS_AT_ONCE):
        texts[rows] = towers.text_pooled(*inputs.texts_at(rows))
    return replace(pairs, features=Features(images, texts, strings(pairs), towers.names))


def _first_trained(towers: StagedTowers) -> tuple[nn.Module, nn.Module]:
    image_tower = towers.loaded.image_tower.timm_model
    text_tower = towers.loaded.text_tower
    return image_tower.blocks[-towers.n_stages], text_tower.encoder.layer[-towers.n_stages]


def _read_by(module: nn.Module, function: Callable, *arguments: Tensor) -> Tensor:
    """What a module reads in a call of a function, which ends there."""
    read: list[Tensor] = []

    def stop(_: nn.Module, inputs: tuple) -> None:
        read.append(inputs[0].clone())
        raise _Reached

    with module.register_forward_pre_hook(stop), suppress(_Reached):
        function(*arguments)
    return read[0]
