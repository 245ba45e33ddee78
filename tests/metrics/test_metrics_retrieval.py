"""Retrieval against a loop over queries; ties count against; what training pairs are hits."""

import statistics
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import picture
from hypothesis import given, settings
from hypothesis import strategies as st

from cibr.data import Pairs
from cibr.metrics import recall_at_k, retrieval, retrieval_ranks, retrieval_recalls

DIRECTIONS = ("image_to_text", "text_to_image")


def slow_ranks(queries, gallery, labels, gallery_labels):
    """The place of the first correct item of one query at a time, after incorrect ones that tie."""
    ranks = []
    for scores, label in zip((queries @ gallery.T).tolist(), labels.tolist(), strict=True):
        correct = [other == label for other in gallery_labels.tolist()]
        order = sorted((-score, c) for score, c in zip(scores, correct, strict=True))
        ranks.append([is_correct for _, is_correct in order].index(True))
    return ranks


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    extra=st.integers(0, 60),
    n_labels=st.integers(1, 40),
    d=st.sampled_from([1, 4, 16]),
    tile=st.sampled_from([1, 100, 2**22]),
    seed=st.integers(0, 999),
)
def test_ranks_equal_a_loop_over_queries_and_rounding_breaks_no_tie(
    n, extra, n_labels, d, tile, seed
):
    generator = torch.Generator().manual_seed(seed)
    own = torch.cat([torch.arange(n), torch.randint(n, (extra,), generator=generator)])
    own = own[torch.randperm(n + extra, generator=generator)]
    # Products of the corners of a cube are exact, and many of them tie.
    images = torch.randn(n, d, generator=generator).sign() / d**0.5
    texts = torch.randn(n + extra, d, generator=generator).sign() / d**0.5
    rounded = [x + 3e-8 * torch.randn(x.shape, generator=generator) for x in (images, texts)]
    by_label = (torch.arange(n) % n_labels).int()
    strings = [str(row % 7) for row in range(n + extra)]  # by label each stands once
    keys = list(zip(strings, by_label[own].tolist(), strict=True))
    distinct = [row for row, key in enumerate(keys) if key not in keys[:row]]
    for labels, name, rows in ((None, "", range(n + extra)), (by_label, "label_", distinct)):
        of_images = torch.arange(n) if labels is None else labels
        with mock.patch.object(retrieval, "_TILE", tile):
            found = retrieval_ranks(*rounded, own, labels, strings)
            recalls = retrieval_recalls(*rounded, strings, own, labels, (1, 2, 999))
        sides = (images, of_images), (texts[rows], of_images[own][rows])
        for i, (queries, gallery) in enumerate((sides, sides[::-1])):
            slow = slow_ranks(queries[0], gallery[0], queries[1], gallery[1])
            assert found[i].tolist() == slow
            assert torch.equal(found[2 + i], queries[1])
            shares = {k: statistics.fmean(rank < k for rank in slow) for k in (1, 2)}
            for k in range(1, 1 + min(2, n, len(rows))):
                assert recalls[f"{DIRECTIONS[i]}_{name}recall@{k}"] == pytest.approx(shares[k])
        assert len(recalls) == 2 * min(2, n, len(rows))  # larger ks are left out


@pytest.mark.parametrize(("n", "extra", "d"), [(7, 12, 31), (1100, 1, 512)])
def test_collapsed_embeddings_score_zero_and_not_a_hundred_percent(n, extra, d):
    own, strings = torch.arange(n + extra) % n, [*map(str, range(n + extra))]
    drawn = torch.randn(1, d, generator=torch.Generator().manual_seed(1))
    point = F.normalize(drawn, dim=1)
    images, texts = point.repeat(n, 1), point.repeat(n + extra, 1)
    assert set(recall_at_k(images, texts, own, (1, 4)).values()) == {0.0}
    recalls = retrieval_recalls(images, texts, strings, own, torch.arange(n) % 3, [1])
    assert set(recalls.values()) == {0.0}


def test_a_difference_of_1e_5_is_no_tie():
    angles = torch.tensor([0.0, 4.5e-3], dtype=torch.float64)  # cos 4.5e-3 is 1 - 1e-5
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    own = torch.arange(2)
    by_label = retrieval_recalls(points, points, ["a", "b"], own, own, [1])
    recalls = recall_at_k(points, points, own, [1]) | by_label
    assert list(recalls.values()) == [1.0] * 4


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_perfect_embeddings_score_one_and_need_not_be_unit_to_the_last_digit(dtype):
    eye = torch.eye(4, dtype=dtype)
    recalls = recall_at_k(0.992 * eye, 1.008 * eye, torch.arange(4), [1, 4])
    assert recalls == {f"{side}_recall@{k}": 1.0 for side in DIRECTIONS for k in (1, 4)}


def made(captions, **options):
    captions = [[c] if isinstance(c, str) else c for c in captions]
    keys = [f"image {i}" for i in range(len(captions))]
    options = {name: torch.tensor(values) for name, values in options.items()}
    return Pairs("made", "test", captions, keys, picture, **options)


POSITIVES = {
    "several images of one text": made(["a dog", "a cat", "a dog", "a dog", "a bird", "a cat"]),
    "groups that a text connects": made([*"abbcde"], groups=[0, 0, 1, 1, 2, 3]),
    "labels, several texts": made([["x", "y"], ["x"], ["z", "u"], ["v"]], labels=[0, 0, 1, 2]),
}


@pytest.mark.parametrize("pairs", POSITIVES.values(), ids=POSITIVES)
def test_what_is_a_positive_in_training_is_a_hit_and_a_perfect_model_scores_one(pairs):
    """The perfect model embeds images and texts of one label as one point."""
    targets = _, text_to_image, labels = pairs.retrieval_targets()
    assert torch.equal(labels, pairs.match_labels())
    perfect = torch.eye(int(labels.max()) + 1)[labels]
    recalls = retrieval_recalls(perfect, perfect[text_to_image], *targets, (1, 99))
    assert recalls == {f"{direction}_label_recall@1": 1.0 for direction in DIRECTIONS}
