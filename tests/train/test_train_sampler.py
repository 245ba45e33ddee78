"""The order of an epoch: every image once, or groups that share what one modality says."""

import pytest
import torch
from helpers import noise_pairs

from cibr.train.sampler import epoch_rows


def labelled(labels):
    pairs = noise_pairs(len(labels), n_captions=3)
    pairs.labels = torch.tensor(labels)
    return pairs


def test_without_groups_an_epoch_is_every_image_once_with_one_of_its_texts():
    pairs = noise_pairs(30, n_captions=4)
    images, texts = epoch_rows(pairs, 1, 1.0, seed=3, epoch=0)
    assert sorted(images.tolist()) == list(range(30))
    assert torch.equal(pairs.text_to_image()[texts], images)


def test_groups_of_an_unlabelled_set_are_different_captions_of_one_image():
    pairs = noise_pairs(30, n_captions=4)
    images, texts = epoch_rows(pairs, 2, 1.0, seed=3, epoch=0)
    assert len(images) == 30
    for (i, j), (a, b) in zip(images.view(-1, 2).tolist(), texts.view(-1, 2).tolist(), strict=True):
        assert i == j == pairs.text_to_image()[a] == pairs.text_to_image()[b]
        assert (a != b) == (len(pairs.captions[i]) > 1)


def test_groups_of_a_labelled_set_are_different_images_of_one_label():
    pairs = labelled([0, 1, 2, 0, 1, 2, 0, 1, 3, 3] * 3)
    images, texts = epoch_rows(pairs, 3, 1.0, seed=3, epoch=0)
    assert torch.equal(pairs.text_to_image()[texts], images)
    for group in images.view(-1, 3):
        assert len(pairs.labels[group].unique()) == 1
        assert len(group.unique()) == 3


def test_small_groups_come_whole_and_once_beside_images_that_stand_alone():
    pairs = noise_pairs(30, n_captions=3)
    pairs.labels = torch.arange(30) // 10  # what the rows show is not what brings them together
    pairs.groups = torch.tensor(
        [*range(20), *range(0, 20, 2)]
    )  # each even image comes in two renderings
    images, texts = epoch_rows(pairs, 2, 1.0, seed=3, epoch=0)
    assert torch.equal(pairs.text_to_image()[texts], images)
    assert sorted(images.tolist()) == list(range(30))
    place = {image: i for i, image in enumerate(images.tolist())}
    assert all(abs(place[20 + i] - place[2 * i]) == 1 for i in range(10))


@pytest.mark.parametrize("groups", [None, "labels", "groups"])
def test_with_a_share_each_run_of_a_group_is_followed_by_images_as_they_come(groups):
    pairs = noise_pairs(30, n_captions=3)
    together = torch.tensor([*range(20), *range(0, 20, 2)])  # ten come twice, ten are alone
    if groups is not None:
        pairs.labels = torch.arange(30) // 10 if groups == "groups" else together
        pairs.groups = together if groups == "groups" else None
    images, texts = epoch_rows(pairs, 2, 0.4, seed=3, epoch=0)
    assert torch.equal(pairs.text_to_image()[texts], images)
    blocks = images.view(6, 5)
    alone = epoch_rows(pairs, 1, 1.0, seed=3, epoch=0)[0]
    assert torch.equal(blocks[:, 2:].flatten(), alone[:18])
    for (i, j), (a, b) in zip(
        blocks[:, :2].tolist(), texts.view(6, 5)[:, :2].tolist(), strict=True
    ):
        if groups is None:
            assert i == j and (a != b) == (len(pairs.captions[i]) > 1)
        else:
            assert i != j and together[i] == together[j]


def test_few_groups_come_again_as_often_as_their_share_takes():
    pairs = labelled([0, 0, *range(1, 19)])
    images, _ = epoch_rows(pairs, 2, 0.5, seed=0, epoch=0)
    assert [sorted(block) for block in images.view(5, 4)[:, :2].tolist()] == [[0, 1]] * 5


def test_an_epoch_with_a_share_has_as_many_rows_as_there_are_images():
    for n, share in ((3, 0.05), (33, 0.4), (30, 0.99)):
        assert (
            len(epoch_rows(labelled([i // 2 for i in range(n)]), 2, share, seed=0, epoch=0)[0]) == n
        )


@pytest.mark.parametrize("group_share", [0.4, 1.0])
@pytest.mark.parametrize("group_size", [1, 2])
def test_seed_and_epoch_decide_the_order(group_size, group_share):
    pairs = labelled([0, 1, 2, 0, 1, 2] * 5)

    def order(seed, epoch):
        return torch.stack(epoch_rows(pairs, group_size, group_share, seed, epoch))

    assert torch.equal(order(1, 2), order(1, 2))
    assert not torch.equal(order(1, 2), order(1, 3))
    assert not torch.equal(order(1, 2), order(2, 2))
