"""Retrieval against a loop over queries; ties count against; what training pairs are hits."""

import statistics
from unittest import mock

import pytest
import torch
from helpers import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cibr.data import Pairs
from cibr.metrics import (
    Ranks,
    chance_recalls,
    recall_at_k,
    recall_hits,
    retrieval,
    retrieval_ranks,
    retrieval_recalls,
)

DIRECTIONS = ("image_to_text", "text_to_image")


def slow_ranks(queries, gallery, labels, gallery_labels):
    """The number of incorrect items at least as similar as the best correct one, by a loop."""
    ranks = []
    for scores, label in zip((queries @ gallery.T).tolist(), labels.tolist(), strict=True):
        is_correct = [gallery_label == label for gallery_label in gallery_labels.tolist()]
        best = max(scores[j] for j in range(len(scores)) if is_correct[j])
        ranks.append(sum(scores[j] >= best for j in range(len(scores)) if not is_correct[j]))
    return ranks


class Problem:
    """Images and captions on the corners of a cube: products are exact, and many tie.

    Args:
        n: number of images.
        n_more: captions beyond one an image.
        d: width of the embeddings.
        seed: of the embeddings and of the captions' order.
    """

    def __init__(self, n, n_more, d, seed):
        generator = torch.Generator().manual_seed(seed)
        m = n + n_more
        image_of_text = torch.cat(
            [torch.arange(n), torch.randint(n, (n_more,), generator=generator)]
        )
        self.text_to_image = image_of_text[torch.randperm(m, generator=generator)]
        self.images = torch.randn(n, d, generator=generator).sign() / d**0.5
        self.texts = torch.randn(m, d, generator=generator).sign() / d**0.5
        # Rounding of about one digit in float32, which must not break a tie.
        noise = [
            3e-8 * torch.randn(x.shape, generator=generator) for x in (self.images, self.texts)
        ]
        self.rounded = [self.images + noise[0], self.texts + noise[1]]


drawn = given(
    n=st.integers(1, 40),
    n_more=st.integers(0, 60),
    d=st.sampled_from([1, 4, 16]),
    tile=st.sampled_from([1, 100, 2**22]),
    seed=st.integers(0, 999),
)


@settings(max_examples=60, deadline=None)
@drawn
def test_paired_ranks_equal_a_loop_over_queries(n, n_more, d, tile, seed):
    problem = Problem(n, n_more, d, seed)
    owners = torch.arange(n)
    with mock.patch.object(retrieval, "_TILE", tile):
        ranks = retrieval_ranks(*problem.rounded, problem.text_to_image)
    images, texts, text_owners = problem.images, problem.texts, problem.text_to_image
    assert ranks.image_ranks.tolist() == slow_ranks(images, texts, owners, text_owners)
    assert ranks.text_ranks.tolist() == slow_ranks(texts, images, text_owners, owners)
    assert torch.equal(ranks.image_clusters, owners)
    assert torch.equal(ranks.text_clusters, text_owners)


@settings(max_examples=60, deadline=None)
@drawn
def test_ranks_by_label_equal_a_loop_over_queries_and_distinct_texts(n, n_more, d, tile, seed):
    problem = Problem(n, n_more, d, seed)
    labels = (torch.arange(n) % (1 + seed % n)).int()
    strings = [str(row % 7) for row in range(n + n_more)]
    with mock.patch.object(retrieval, "_TILE", tile):
        ranks = retrieval_ranks(*problem.rounded, problem.text_to_image, labels, strings)
    keys = list(zip(strings, labels[problem.text_to_image].tolist(), strict=True))
    distinct = [row for row, key in enumerate(keys) if key not in keys[:row]]
    images, texts = problem.images, problem.texts[distinct]
    text_labels = labels[problem.text_to_image][distinct]
    assert ranks.image_ranks.tolist() == slow_ranks(images, texts, labels, text_labels)
    assert ranks.text_ranks.tolist() == slow_ranks(texts, images, text_labels, labels)
    assert torch.equal(ranks.image_clusters, labels)
    assert torch.equal(ranks.text_clusters, text_labels)


def test_without_strings_every_text_is_in_the_gallery():
    problem = Problem(n=9, n_more=5, d=16, seed=0)
    labels = torch.arange(9) % 4
    ranks = retrieval_ranks(problem.images, problem.texts, problem.text_to_image, labels)
    text_labels = labels[problem.text_to_image]
    expected = slow_ranks(problem.texts, problem.images, text_labels, labels)
    assert ranks.text_ranks.tolist() == expected


@pytest.mark.parametrize("by_label", [False, True])
def test_recalls_are_the_shares_of_ranks_below_k(by_label):
    problem = Problem(n=9, n_more=5, d=16, seed=0)
    labels = torch.arange(9) % 4 if by_label else torch.arange(9)
    text_labels = labels[problem.text_to_image]
    ranks = {
        "image_to_text": slow_ranks(problem.images, problem.texts, labels, text_labels),
        "text_to_image": slow_ranks(problem.texts, problem.images, text_labels, labels),
    }
    name = "label_recall" if by_label else "recall"
    expected = {}
    for direction in DIRECTIONS:
        for k in (1, 2):
            hits = [rank < k for rank in ranks[direction]]
            expected[f"{direction}_{name}@{k}"] = pytest.approx(statistics.fmean(hits))
    strings = [str(row) for row in range(14)]
    targets = (strings, problem.text_to_image, labels if by_label else None)
    assert retrieval_recalls(problem.images, problem.texts, *targets, ks=(1, 2)) == expected


def test_hits_are_one_number_a_query_for_each_recall():
    ranks = Ranks(
        image_ranks=torch.tensor([0, 2]),
        text_ranks=torch.tensor([1, 0, 5]),
        image_clusters=torch.arange(2),
        text_clusters=torch.tensor([0, 1, 1]),
        by_label=False,
    )
    hits = {name: values.tolist() for name, values in recall_hits(ranks, ks=(1, 2)).items()}
    assert hits == {
        "image_to_text_recall@1": [1, 0],
        "image_to_text_recall@2": [1, 0],
        "text_to_image_recall@1": [0, 1, 0],
        "text_to_image_recall@2": [1, 1, 0],
    }


def test_ks_above_the_smaller_gallery_are_left_out():
    problem = Problem(n=3, n_more=2, d=16, seed=0)
    recalls = recall_at_k(problem.images, problem.texts, problem.text_to_image, (1, 3, 4))
    assert list(recalls) == [f"{direction}_recall@{k}" for direction in DIRECTIONS for k in (1, 3)]


@pytest.mark.parametrize(("n", "n_more", "d"), [(7, 12, 31), (1100, 1, 512)])
@pytest.mark.parametrize("by_label", [False, True])
def test_collapsed_embeddings_score_zero_and_not_a_hundred_percent(n, n_more, d, by_label):
    point = F.normalize(torch.randn(1, d, generator=torch.Generator().manual_seed(1)), dim=1)
    images = point.repeat(n, 1)
    texts = point.repeat(n + n_more, 1)
    strings = [str(row) for row in range(n + n_more)]
    labels = torch.arange(n) % 3 if by_label else None
    text_to_image = torch.arange(n + n_more) % n
    recalls = retrieval_recalls(images, texts, strings, text_to_image, labels, (1, 4))
    assert set(recalls.values()) == {0.0}


@pytest.mark.parametrize("labels", [None, torch.arange(2)])
def test_a_difference_of_1e_5_is_no_tie(labels):
    angles = torch.tensor([0.0, 4.5e-3], dtype=torch.float64)  # cos 4.5e-3 is 1 - 1e-5
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    recalls = retrieval_recalls(points, points, ["a", "b"], torch.arange(2), labels, [1])
    assert list(recalls.values()) == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_perfect_embeddings_score_one_and_need_not_be_unit_to_the_last_digit(dtype):
    eye = torch.eye(4, dtype=dtype)
    recalls = recall_at_k(0.992 * eye, 1.008 * eye, torch.arange(4), [1, 4])
    assert recalls == {f"{direction}_recall@{k}": 1.0 for direction in DIRECTIONS for k in (1, 4)}


def pairs_of(captions, **options):
    """Pairs whose images have these captions, one or several each."""
    captions = [[texts] if isinstance(texts, str) else texts for texts in captions]
    keys = [f"image {i}" for i in range(len(captions))]
    options = {name: torch.tensor(values) for name, values in options.items()}
    return Pairs("made", "test", captions, keys, picture, **options)


POSITIVES = {
    "several images of one text": pairs_of(["a dog", "a cat", "a dog", "a dog", "a bird", "a cat"]),
    "groups that a text connects": pairs_of([*"abbcde"], groups=[0, 0, 1, 1, 2, 3]),
    "labels, several texts": pairs_of([["x", "y"], ["x"], ["z", "u"], ["v"]], labels=[0, 0, 1, 2]),
}


@pytest.mark.parametrize("pairs", POSITIVES.values(), ids=POSITIVES)
def test_what_is_a_positive_in_training_is_a_hit_and_a_perfect_model_scores_one(pairs):
    """The perfect model embeds images and texts of one label as one point."""
    texts, text_to_image, labels = pairs.retrieval_targets()
    assert torch.equal(labels, pairs.match_labels())
    image_embeddings = torch.eye(int(labels.max()) + 1)[labels]
    text_embeddings = image_embeddings[text_to_image]
    recalls = retrieval_recalls(
        image_embeddings, text_embeddings, texts, text_to_image, labels, ks=(1, 99)
    )
    assert recalls == {f"{direction}_label_recall@1": 1.0 for direction in DIRECTIONS}


def test_chance_is_the_mean_recall_of_random_embeddings():
    generator = torch.Generator().manual_seed(0)
    text_to_image = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4, 4, 5, 6])
    labels = torch.tensor([3, 3, 5, 5, 5, 9, 7])
    for of_images in (None, labels):
        found = []
        for _ in range(2000):
            images = F.normalize(torch.randn(7, 9, generator=generator), dim=1)
            texts = F.normalize(torch.randn(11, 9, generator=generator), dim=1)
            ranks = retrieval_ranks(images, texts, text_to_image, of_images)
            hits = recall_hits(ranks, ks=(1, 5))
            found.append([values.mean().item() for values in hits.values()])
        expected = chance_recalls(ranks, ks=(1, 5))
        assert list(expected) == list(hits)
        means = torch.tensor(found).mean(0).tolist()
        assert list(expected.values()) == pytest.approx(means, abs=0.02)


def test_chance_is_one_where_every_item_is_correct():
    same = F.normalize(torch.ones(3, 2), dim=1)
    ranks = retrieval_ranks(same, same, torch.arange(3), torch.zeros(3, dtype=torch.long))
    assert chance_recalls(ranks, ks=(1,)) == {
        "image_to_text_label_recall@1": 1.0,
        "text_to_image_label_recall@1": 1.0,
    }
