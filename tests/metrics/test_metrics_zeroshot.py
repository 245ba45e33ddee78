"""Zero-shot accuracy against a loop; ties count against, prompts are averaged on the sphere."""

import math

import pytest
import torch
import torch.nn.functional as F

from cibr.metrics import class_embeddings, class_ranks, predictions, zeroshot_accuracy


def test_ranks_and_accuracies_equal_a_loop_over_images_and_classes():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1100, 4, generator=generator).sign() / 2  # exact products, many ties
    classes = torch.randn(7, 4, generator=generator).sign() / 2
    labels = torch.randint(7, (1100,), generator=generator)
    slow, by_class = [], [[] for _ in classes]
    for image, label in zip(images, labels.tolist(), strict=True):
        own = image @ classes[label]
        slow.append(sum(bool(image @ one >= own) for c, one in enumerate(classes) if c != label))
        by_class[label].append(slow[-1] < 1)
    assert class_ranks(images, classes, labels).tolist() == slow
    cosines = images @ classes.T
    nearest = cosines.gather(1, predictions(images, classes)[:, None])[:, 0]
    assert torch.equal(nearest, cosines.amax(1))
    expected = {f"accuracy@{k}": sum(rank < k for rank in slow) / 1100 for k in (1, 3, 7)}
    expected["mean_per_class_accuracy"] = sum(sum(hits) / len(hits) for hits in by_class) / 7
    accuracies = zeroshot_accuracy(images, classes, labels, [1, 3, 7, 8])
    assert accuracies == pytest.approx(expected)


@pytest.mark.parametrize(
    ("n_classes", "names"), [(4, ["accuracy@1"]), (5, ["accuracy@1", "accuracy@5"])]
)
def test_the_mean_over_classes_leaves_out_those_without_an_image_and_top_five_needs_five_classes(
    n_classes, names
):
    classes = torch.eye(n_classes)
    accuracies = zeroshot_accuracy(classes[[0, 0, 0, 1]], classes, torch.tensor([0, 0, 0, 3]))
    assert list(accuracies) == [*names, "mean_per_class_accuracy"]
    assert accuracies["accuracy@1"] == 0.75 and accuracies["mean_per_class_accuracy"] == 0.5


@pytest.mark.parametrize(
    ("n", "c", "d"), [(1, 2, 512), (1025, 3, 100), (300, 1000, 64), (7, 17, 31)]
)
def test_collapsed_embeddings_name_no_image_correctly(n, c, d):
    point = F.normalize(torch.randn(1, d, generator=torch.Generator().manual_seed(0)), dim=1)
    accuracies = zeroshot_accuracy(point.repeat(n, 1), point.repeat(c, 1), torch.arange(n) % c)
    assert accuracies["accuracy@1"] == accuracies["mean_per_class_accuracy"] == 0


def test_a_class_is_the_normalised_mean_of_unit_prompts_whatever_their_length():
    prompts = torch.tensor([[[3.0, 0.0], [0.0, 0.1]], [[0.0, -2.0], [0.0, -5.0]]])
    expected = torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.0, -1.0]])
    torch.testing.assert_close(class_embeddings(prompts), expected)
    torch.testing.assert_close(class_embeddings(prompts.bfloat16()), expected, atol=1e-2, rtol=0)
