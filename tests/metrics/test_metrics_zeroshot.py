"""Zero-shot accuracy against a loop; ties count against, prompts are averaged on the sphere."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cibr.metrics import class_embeddings, class_ranks, zeroshot_accuracy


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 80), n_classes=st.integers(2, 9), seed=st.integers(0, 999))
def test_ranks_and_accuracies_equal_a_loop_over_images_and_classes(n, n_classes, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 4, generator=generator).sign() / 2  # exact products, many ties
    classes = torch.randn(n_classes, 4, generator=generator).sign() / 2
    labels = torch.randint(n_classes, (n,), generator=generator)
    slow, by_class = [], {}
    for image, label in zip(images, labels.tolist(), strict=True):
        own = image @ classes[label]
        slow.append(sum(bool(image @ one >= own) for c, one in enumerate(classes) if c != label))
        by_class.setdefault(label, []).append(slow[-1] < 1)
    assert class_ranks(images, classes, labels).tolist() == slow
    means = [sum(hits) / len(hits) for hits in by_class.values()]
    accuracy = sum(rank < 1 for rank in slow) / n
    expected = {"accuracy@1": accuracy, "mean_per_class_accuracy": sum(means) / len(means)}
    assert zeroshot_accuracy(images, classes, labels) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "c", "d"), [(1, 2, 512), (1025, 3, 100), (300, 1000, 64)])
def test_collapsed_embeddings_name_no_image_correctly(n, c, d):
    point = F.normalize(torch.randn(1, d, generator=torch.Generator().manual_seed(0)), dim=1)
    accuracies = zeroshot_accuracy(point.repeat(n, 1), point.repeat(c, 1), torch.arange(n) % c)
    assert accuracies["accuracy@1"] == accuracies["mean_per_class_accuracy"] == 0


def test_a_class_is_the_normalised_mean_of_unit_prompts_whatever_their_length():
    prompts = torch.tensor([[[3.0, 0.0], [0.0, 0.1]], [[0.0, -2.0], [0.0, -5.0]]])
    expected = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.0, -1.0]])
    torch.testing.assert_close(class_embeddings(prompts), expected)
