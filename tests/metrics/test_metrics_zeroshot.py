"""Zero-shot accuracy against a loop; ties count against, prompts are averaged on the sphere."""

import math

import pytest
import torch
import torch.nn.functional as F

from cibr.metrics import class_embeddings, class_ranks, predictions, retrieval, zeroshot_accuracy


def labelled(n=70, c=7, d=5, seed=0):
    """Small whole numbers, so that many similarities tie exactly."""
    generator = torch.Generator().manual_seed(seed)
    images, classes = (
        torch.randint(-2, 3, (size, d), generator=generator).float() for size in (n, c)
    )
    for side in (images, classes):
        side[(side == 0).all(1)] = 1
    return images, classes, torch.randint(c, (n,), generator=generator)


@pytest.mark.parametrize("block", [3, 1024])
def test_ranks_and_accuracies_equal_a_loop_over_images_and_classes(block, monkeypatch):
    monkeypatch.setattr(retrieval, "BLOCK", block)
    images, classes, labels = labelled()
    slow = []
    for image, label in zip(images, labels.tolist(), strict=True):
        own = image @ classes[label]
        slow.append(sum(bool(image @ one >= own) for c, one in enumerate(classes) if c != label))
    assert class_ranks(images, classes, labels).tolist() == slow
    cosines = images @ classes.T
    assert torch.equal(
        cosines.gather(1, predictions(images, classes)[:, None])[:, 0], cosines.amax(1)
    )
    by_class = [
        [rank < 1 for rank, j in zip(slow, labels.tolist(), strict=True) if j == c]
        for c in range(7)
    ]
    assert zeroshot_accuracy(images, classes, labels) == pytest.approx(
        {
            "accuracy@1": sum(rank < 1 for rank in slow) / 70,
            "accuracy@5": sum(rank < 5 for rank in slow) / 70,
            "mean_per_class_accuracy": sum(sum(hits) / len(hits) for hits in by_class) / 7,
        }
    )


def test_the_mean_over_classes_leaves_out_those_without_an_image_and_top_five_needs_five_classes():
    classes = torch.eye(4)
    found = zeroshot_accuracy(classes[[0, 0, 0, 1]], classes, torch.tensor([0, 0, 0, 3]))
    assert found == {"accuracy@1": 0.75, "mean_per_class_accuracy": 0.5}


@pytest.mark.parametrize(
    ("n", "c", "d"), [(1, 2, 512), (1025, 3, 100), (300, 1000, 64), (7, 17, 31)]
)
def test_collapsed_embeddings_name_no_image_rightly(n, c, d):
    point = F.normalize(torch.randn(1, d, generator=torch.Generator().manual_seed(0)), dim=1)
    found = zeroshot_accuracy(point.repeat(n, 1), point.repeat(c, 1), torch.arange(n) % c)
    assert found["accuracy@1"] == found["mean_per_class_accuracy"] == 0


def test_a_class_is_the_normalised_mean_of_unit_prompts_whatever_their_length():
    prompts = torch.tensor([[[3.0, 0.0], [0.0, 0.1]], [[0.0, -2.0], [0.0, -5.0]]])
    wanted = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.0, -1.0]])
    torch.testing.assert_close(class_embeddings(prompts), wanted)
    torch.testing.assert_close(class_embeddings(prompts.bfloat16()), wanted, atol=1e-2, rtol=0)
