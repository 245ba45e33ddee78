"""Retrieval against a loop over queries and others' scores; ties count against; what training pairs
are hits.
"""

import statistics
import warnings

import pytest
import torch
import torch.nn.functional as F
from helpers import picture
from sklearn.metrics import average_precision_score

from cibr.data import Pairs
from cibr.metrics import (
    distinct_texts,
    label_recall_at_k,
    query_scores,
    recall_at_k,
    retrieval,
    retrieval_ranks,
    retrieval_recalls,
)

DIRECTIONS = ("image_to_text", "text_to_image")


def embeddings(n=23, m=60, d=6, seed=0):
    """Unit vectors of images and texts, each image with one text at least, in no order."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(n, d, generator=generator), dim=1)
    text_to_image = torch.cat([torch.arange(n), torch.randint(n, (m - n,), generator=generator)])
    text_to_image = text_to_image[torch.randperm(m, generator=generator)]
    noise = torch.randn(m, d, generator=generator)
    return images, F.normalize(images[text_to_image] + 0.6 * noise, dim=1), text_to_image


def tied_embeddings():
    """Whole numbers, whose products are exact: ties stay ties however the matrix is cut."""
    images, texts, text_to_image = embeddings()
    images, texts = torch.round(3 * images), torch.round(3 * texts)
    images[(images == 0).all(1)] = 1
    texts[(texts == 0).all(1)] = 1
    return images, texts, text_to_image


def slow_scores(queries, gallery, labels, gallery_labels):
    """Rank and average precision of one query at a time, wrong items before right ones that tie
    with them.
    """
    ranks, precisions = [], []
    for query, label in zip(queries, labels.tolist(), strict=True):
        right = [other == label for other in gallery_labels.tolist()]
        order = sorted((-float(query @ item), r) for item, r in zip(gallery, right, strict=True))
        places = [place for place, (_, is_right) in enumerate(order) if is_right]
        ranks.append(places[0])
        precisions.append(statistics.fmean((k + 1) / (place + 1) for k, place in enumerate(places)))
    return ranks, precisions


@pytest.mark.parametrize(
    "n_labels", [23, 9, 2]
)  # each image its own; several right items; more than are counted
@pytest.mark.parametrize("tied", [False, True])
def test_scores_by_label_equal_a_loop_over_queries(n_labels, tied):
    images, texts, own = tied_embeddings() if tied else embeddings()
    image_labels = torch.arange(23) % n_labels
    text_labels = image_labels[own]
    found = query_scores(images, texts, image_labels, text_labels)
    sides = (images, texts, image_labels, text_labels), (texts, images, text_labels, image_labels)
    for side, direction, ranks, precisions in zip(
        sides, DIRECTIONS, found[:2], found[2:], strict=True
    ):
        slow_ranks, slow_precisions = slow_scores(*side)
        assert ranks.tolist() == slow_ranks
        assert precisions.tolist() == pytest.approx(slow_precisions)
        recalls = label_recall_at_k(images, texts, image_labels, text_labels, [1, 5])
        expected = statistics.fmean(rank < 5 for rank in slow_ranks)
        assert recalls[f"{direction}_label_recall@5"] == pytest.approx(expected)


def test_recalls_equal_those_of_eccv_caption_on_the_five_thousand_images_of_coco():
    with warnings.catch_warnings(action="ignore"):  # it would like ujson
        from eccv_caption import Metrics
    reference, ks = Metrics(), (1, 5, 10)
    image_ids, text_ids = (
        torch.tensor(sorted(reference.coco_gts["i2t"])),
        torch.from_numpy(reference.coco_ids),
    )
    own_ids = torch.tensor([reference.coco_gts["t2i"][text][0] for text in text_ids.tolist()])
    own, generator = torch.searchsorted(image_ids, own_ids), torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(5000, 24, generator=generator), dim=1)
    texts = F.normalize(images[own] + 0.33 * torch.randn(len(own), 24, generator=generator), dim=1)
    lists, ours = {}, recall_at_k(images, texts, own, ks)
    sides = (
        ("i2t", images @ texts.T, image_ids, text_ids),
        ("t2i", texts @ images.T, text_ids, image_ids),
    )
    for side, scores, queries, gallery in sides:  # for each id the ids of the ten nearest, in order
        lists[side] = dict(
            zip(queries.tolist(), gallery[scores.topk(10).indices].tolist(), strict=True)
        )
    for k in ks:
        theirs = reference.coco_5k_recalls(lists, "all", k)
        for side, direction in zip(("i2t", "t2i"), DIRECTIONS, strict=True):
            assert ours[f"{direction}_recall@{k}"] == pytest.approx(theirs[side], abs=1e-12)
            assert 0.02 < theirs[side] < 0.98


def test_average_precisions_equal_those_of_scikit_learn():
    images, texts, own = embeddings(60, 240, 16)
    found, right = (
        query_scores(images, texts, torch.arange(60), own),
        own == torch.arange(60)[:, None],
    )
    sides = (right, images @ texts.T), (right.T, texts @ images.T)
    for precisions, side in zip(found[2:], sides, strict=True):
        theirs = [average_precision_score(*query) for query in zip(*side, strict=True)]
        assert precisions.tolist() == pytest.approx(theirs, rel=1e-6)


def test_paired_ranks_in_one_pass_equal_those_by_label():
    for images, texts, own in (embeddings(300, 1500, 16), tied_embeddings()):
        found, ranks = (
            query_scores(images, texts, own.unique(), own),
            retrieval_ranks(images, texts, own),
        )
        assert all(torch.equal(x, y) for x, y in zip(found, ranks, strict=False))


@pytest.mark.parametrize(("block", "tile"), [(1, 1), (7, 50), (60, 2**18)])
def test_the_cut_into_blocks_and_tiles_does_not_change_the_ranks(block, tile, monkeypatch):
    images, texts, own = tied_embeddings()
    whole = (
        *retrieval_ranks(images, texts, own),
        *query_scores(images, texts, torch.arange(23), own),
    )
    monkeypatch.setattr(retrieval, "BLOCK", block)
    monkeypatch.setattr(retrieval, "TILE_ELEMENTS", tile)
    parts = (
        *retrieval_ranks(images, texts, own),
        *query_scores(images, texts, torch.arange(23), own),
    )
    assert all(torch.equal(part, full) for part, full in zip(parts, whole, strict=True))


def test_a_band_that_rounds_otherwise_costs_a_second_pass_and_no_rank(monkeypatch):
    images, texts, own = embeddings(100, 700, 32)
    wanted, passes, one_pass = retrieval_ranks(images, texts, own), [], retrieval._pass
    band = retrieval._own_of_band

    def other_rounding(*args):
        return torch.nextafter(band(*args), torch.tensor(2.0))

    monkeypatch.setattr(retrieval, "_own_of_band", other_rounding)
    monkeypatch.setattr(retrieval, "_pass", lambda *args: passes.append(1) or one_pass(*args))
    for found, rank in zip(retrieval_ranks(images, texts, own), wanted, strict=True):
        assert torch.equal(found, rank)
    assert len(passes) == 2


@pytest.mark.parametrize(
    "sizes",
    [(23, 60, 6), (130, 517, 64), (6, 1041, 100), (17, 1025, 5), (70, 3, 31), (1100, 1, 512)],
)
def test_collapsed_embeddings_score_zero_and_not_a_hundred_percent(sizes):
    n, extra, d = sizes
    own, numbers = torch.arange(n + extra) % n, torch.arange(n)
    point = F.normalize(torch.randn(1, d, generator=torch.Generator().manual_seed(1)), dim=1)
    images, texts = point.repeat(n, 1), point.repeat(n + extra, 1)
    assert set(recall_at_k(images, texts, own, (1, 5)).values()) == {0.0}
    assert set(label_recall_at_k(images, texts, numbers % 3, own % 3, [1]).values()) == {0.0}


def test_perfect_embeddings_score_one_at_every_k_and_type():
    for dtype in (torch.float64, torch.bfloat16):
        found = recall_at_k(
            torch.eye(4, dtype=dtype), torch.eye(4, dtype=dtype), torch.arange(4), [1, 4]
        )
        assert list(found) == [f"{side}_recall@{k}" for side in DIRECTIONS for k in (1, 4)]
        assert set(found.values()) == {1.0}


def made(captions, **options):
    keys = [f"image {i}" for i in range(len(captions))]
    return Pairs(
        "made",
        "test",
        [[c] if isinstance(c, str) else c for c in captions],
        keys,
        picture,
        **options,
    )


POSITIVES = {
    "several images of one text": made(["a dog", "a cat", "a dog", "a dog", "a bird", "a cat"]),
    "groups": made(
        ["a dog", "the cat", "my dog", "a cat", "a bird", "so"],
        groups=torch.tensor([0, 1, 0, 1, 2, 3]),
    ),
    "groups that a text connects": made(
        ["a", "b", "b", "c", "d", "e"], groups=torch.tensor([0, 0, 1, 1, 2, 3])
    ),
    "labels": made(
        ["a dog", "one dog", "a cat", "a dog", "one cat", "tree"],
        labels=torch.tensor([7, 7, 1, 7, 1, 2]),
    ),
    "labels, several texts": made(
        [["x", "y"], ["x"], ["z", "u"], ["v"]], labels=torch.tensor([0, 0, 1, 2])
    ),
}


@pytest.mark.parametrize("pairs", POSITIVES.values(), ids=POSITIVES)
def test_what_is_a_positive_in_training_is_a_hit_and_a_perfect_model_scores_one(pairs):
    """The perfect model embeds images and texts of one label as one point, and a text always alike."""
    assert not pairs.paired
    labels = pairs.match_labels()
    points = torch.eye(int(labels.max()) + 1)
    found = retrieval_recalls(pairs, points[labels], points[labels[pairs.text_to_image()]], (1, 99))
    assert found == {f"{direction}_label_recall@1": 1.0 for direction in DIRECTIONS}
    swapped = points.roll(1, 0)[labels[pairs.text_to_image()]]
    assert retrieval_recalls(pairs, points.roll(1, 0)[labels], swapped, (1,)) == found
    collapsed = torch.ones(len(pairs.texts()), 3)
    assert set(retrieval_recalls(pairs, torch.ones(len(pairs), 3), collapsed, (1,)).values()) == {
        0.0
    }


def test_a_text_that_images_share_stands_once_in_the_gallery():
    pairs = made(["b", "a", "b", "b"], labels=torch.tensor([0, 1, 0, 2]))
    rows, labels = distinct_texts(pairs)
    assert (rows.tolist(), labels.tolist()) == ([0, 1, 3], [0, 1, 2])
    # Image 1 finds the shared text first, which counts as one wrong item and not as three.
    images, texts = torch.eye(2)[[0, 0, 0, 0]], torch.eye(2)[[0, 1, 0, 0]]
    pairs = made(["b", "a", "b", "b"])
    assert retrieval_recalls(pairs, images, texts, (1, 2))["image_to_text_label_recall@2"] == 1
    assert (
        label_recall_at_k(images, texts, *[pairs.match_labels()] * 2, (2,))[
            "image_to_text_label_recall@2"
        ]
        < 1
    )


def test_captioned_pairs_follow_karpathys_protocol_and_large_ks_are_left_out():
    captions = [["a", "b"], ["c"], ["a", "d"]]
    pairs = made(captions)
    images, texts, _ = embeddings(3, 5)
    found = retrieval_recalls(pairs, images, texts, (1, 3, 5))
    assert found == recall_at_k(images, texts, torch.tensor([0, 0, 1, 2, 2]), (1, 3))
