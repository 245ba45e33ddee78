"""The order of an epoch: every picture once, or groups that share what one modality says."""

import pytest
import torch
from conftest import noise_pairs

from cibr.train.order import epoch_rows


def labelled(labels):
    pairs = noise_pairs(len(labels), n_captions=3)
    pairs.labels = torch.tensor(labels)
    return pairs


def test_without_groups_an_epoch_is_every_picture_once_with_one_of_its_texts():
    pairs = noise_pairs(30, n_captions=4)
    images, texts = epoch_rows(pairs, 1, seed=3, epoch=0)
    assert sorted(images.tolist()) == list(range(30))
    assert torch.equal(pairs.text_to_image()[texts], images)


def test_groups_of_an_unlabelled_set_are_different_captions_of_one_picture():
    pairs = noise_pairs(30, n_captions=4)
    images, texts = epoch_rows(pairs, 2, seed=3, epoch=0)
    assert len(images) == 30
    for (i, j), (a, b) in zip(images.view(-1, 2).tolist(), texts.view(-1, 2).tolist(), strict=True):
        assert i == j == pairs.text_to_image()[a] == pairs.text_to_image()[b]
        assert (a != b) == (len(pairs.captions[i]) > 1)


def test_groups_of_a_labelled_set_are_different_pictures_of_one_label():
    pairs = labelled([0, 1, 2, 0, 1, 2, 0, 1, 3, 3] * 3)
    images, texts = epoch_rows(pairs, 3, seed=3, epoch=0)
    assert torch.equal(pairs.text_to_image()[texts], images)
    for group in images.view(-1, 3):
        assert len(pairs.labels[group].unique()) == 1
        assert len(group.unique()) == 3


def test_small_groups_come_whole_and_once_beside_pictures_that_stand_alone():
    pairs = noise_pairs(30, n_captions=3)
    pairs.labels = torch.arange(30) // 10  # what the rows show is not what brings them together
    pairs.groups = torch.tensor([*range(20), *range(0, 20, 2)])  # each even picture comes in two looks
    images, texts = epoch_rows(pairs, 2, seed=3, epoch=0)
    assert torch.equal(pairs.text_to_image()[texts], images)
    assert sorted(images.tolist()) == list(range(30))
    place = {image: i for i, image in enumerate(images.tolist())}
    assert all(abs(place[20 + i] - place[2 * i]) == 1 for i in range(10))


@pytest.mark.parametrize("group_size", [1, 2])
def test_seed_and_epoch_decide_the_order(group_size):
    pairs = labelled([0, 1, 2, 0, 1, 2] * 5)

    def order(seed, epoch):
        return torch.stack(epoch_rows(pairs, group_size, seed, epoch))

    assert torch.equal(order(1, 2), order(1, 2))
    assert not torch.equal(order(1, 2), order(1, 3))
    assert not torch.equal(order(1, 2), order(2, 2))
