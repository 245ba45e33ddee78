"""Zero-shot accuracy against a loop; ties count against, prompts are averaged on the sphere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cibr.metrics import class_embeddings, class_ranks, zeroshot_accuracy


def cube_corners(n, generator):
    """Unit vectors, [n, 4], with exact products, many of which tie."""
    return torch.randn(n, 4, generator=generator).sign() / 2


def slow_ranks(images, classes, labels):
    ranks = []
    for image, label in zip(images, labels.tolist(), strict=True):
        scores = [(image @ embedding).item() for embedding in classes]
        others = [score for index, score in enumerate(scores) if index != label]
        ranks.append(sum(score >= scores[label] for score in others))
    return ranks


drawn = given(n=st.integers(1, 80), n_classes=st.integers(2, 9), seed=st.integers(0, 999))


def problem(n, n_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    images = cube_corners(n, generator)
    classes = cube_corners(n_classes, generator)
    labels = torch.randint(n_classes, (n,), generator=generator)
    return images, classes, labels


@settings(max_examples=30, deadline=None)
@drawn
def test_ranks_equal_a_loop_over_images_and_classes(n, n_classes, seed):
    images, classes, labels = problem(n, n_classes, seed)
    assert class_ranks(images, classes, labels).tolist() == slow_ranks(images, classes, labels)


@settings(max_examples=30, deadline=None)
@drawn
def test_accuracies_are_the_means_of_hits_over_images_and_over_classes(n, n_classes, seed):
    images, classes, labels = problem(n, n_classes, seed)
    hits = [rank == 0 for rank in slow_ranks(images, classes, labels)]
    hits_by_class = {}
    for label, hit in zip(labels.tolist(), hits, strict=True):
        hits_by_class.setdefault(label, []).append(hit)
    class_means = [sum(class_hits) / len(class_hits) for class_hits in hits_by_class.values()]
    accuracies = zeroshot_accuracy(images, classes, labels)
    assert accuracies["accuracy@1"] == pytest.approx(sum(hits) / n)
    expected = sum(class_means) / len(class_means)
    assert accuracies["mean_per_class_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(("n", "c", "d"), [(1, 2, 512), (1025, 3, 100), (300, 1000, 64)])
def test_collapsed_embeddings_name_no_image_correctly(n, c, d):
    point = F.normalize(torch.randn(1, d, generator=torch.Generator().manual_seed(0)), dim=1)
    accuracies = zeroshot_accuracy(point.repeat(n, 1), point.repeat(c, 1), torch.arange(n) % c)
    assert accuracies == {"accuracy@1": 0.0, "mean_per_class_accuracy": 0.0}


def test_a_class_is_the_normalised_mean_of_unit_prompts_whatever_their_length():
    prompts = torch.tensor([[[3.0, 0.0], [0.0, 0.1]], [[0.0, -2.0], [0.0, -5.0]]])
    expected = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.0, -1.0]])
    torch.testing.assert_close(class_embeddings(prompts), expected)
