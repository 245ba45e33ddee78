"""Recall at k against a loop over queries; ties count against, degenerate input is refused."""

import math

import pytest
import torch
import torch.nn.functional as F

from cibr import metrics
from cibr.metrics import recall_at_k, retrieval_ranks


def embeddings(n=23, m=60, d=6, seed=0):
    """Unit vectors of images and texts, each image with one text at least, in no order."""
    generator = torch.Generator().manual_seed(seed)
    images = F.normalize(torch.randn(n, d, generator=generator), dim=1)
    text_to_image = torch.cat([torch.arange(n), torch.randint(n, (m - n,), generator=generator)])
    text_to_image = text_to_image[torch.randperm(m, generator=generator)]
    noise = torch.randn(m, d, generator=generator)
    return images, F.normalize(images[text_to_image] + 0.6 * noise, dim=1), text_to_image


def slow_recall(images, texts, text_to_image, k):
    """One query at a time: a hit is a right item with fewer than k wrong ones at least as similar."""
    image_hits = text_hits = 0
    text_to_image = text_to_image.tolist()
    for i in range(len(images)):
        cosines = [float(images[i] @ text) for text in texts]
        best = max(c for c, j in zip(cosines, text_to_image, strict=True) if j == i)
        image_hits += sum(c >= best and j != i for c, j in zip(cosines, text_to_image, strict=True)) < k
    for j in range(len(texts)):
        cosines, own = [float(image @ texts[j]) for image in images], text_to_image[j]
        text_hits += sum(c >= cosines[own] and i != own for i, c in enumerate(cosines)) < k
    return image_hits / len(images), text_hits / len(texts)


@pytest.mark.parametrize("seed", range(3))
def test_recall_equals_a_loop_over_queries_with_several_captions_an_image(seed):
    images, texts, text_to_image = embeddings(seed=seed)
    found = recall_at_k(images, texts, text_to_image, (1, 5, 10))
    for k in (1, 5, 10):
        slow = slow_recall(images, texts, text_to_image, k)
        assert (found[f"image_to_text_recall@{k}"], found[f"text_to_image_recall@{k}"]) == pytest.approx(slow)
    assert 0 < found["text_to_image_recall@1"] < found["text_to_image_recall@5"] < 1  # no trivial case


@pytest.mark.parametrize("chunk", [1, 7, 60])
def test_chunks_do_not_change_the_ranks(chunk, monkeypatch):
    # Products of whole numbers are exact, so that ties stay ties however the matrix is cut.
    images, texts, text_to_image = (torch.round(3 * e) if e.is_floating_point() else e for e in embeddings())
    texts[(texts == 0).all(1)] = 1
    images[(images == 0).all(1)] = 1
    whole = retrieval_ranks(images, texts, text_to_image)
    monkeypatch.setattr(metrics, "CHUNK", chunk)
    for part, full in zip(retrieval_ranks(images, texts, text_to_image), whole, strict=True):
        assert torch.equal(part, full)


@pytest.mark.parametrize("sizes", [(23, 60, 6), (130, 517, 64), (257, 257, 128)])
def test_collapsed_embeddings_score_zero_and_not_a_hundred_percent(sizes):
    _, _, text_to_image = embeddings(*sizes)
    point = F.normalize(torch.randn(1, sizes[2], generator=torch.Generator().manual_seed(1)), dim=1)
    found = recall_at_k(point.repeat(sizes[0], 1), point.repeat(sizes[1], 1), text_to_image, (1, 5))
    assert set(found.values()) == {0.0}


def test_an_own_caption_that_ties_for_the_best_is_not_wrong():
    images, texts = torch.eye(3), torch.eye(3)[[0, 0, 1, 2]]
    ranks = retrieval_ranks(images, texts, torch.tensor([0, 0, 1, 2]))
    assert [r.tolist() for r in ranks] == [[0, 0, 0], [0, 0, 0, 0]]
    tied = retrieval_ranks(images, texts, torch.tensor([0, 1, 1, 2]))  # one picture's caption is another's too
    assert [r.tolist() for r in tied] == [[1, 0, 0], [0, 2, 0, 0]]


def test_perfect_embeddings_score_one_at_every_k_and_type():
    for dtype in (torch.float64, torch.bfloat16):
        found = recall_at_k(torch.eye(4, dtype=dtype), torch.eye(4, dtype=dtype), torch.arange(4), [1, 4])
        assert list(found) == [f"{s}_recall@{k}" for s in ("image_to_text", "text_to_image") for k in (1, 4)]
        assert set(found.values()) == {1.0}


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
@pytest.mark.parametrize("side", [0, 1])
def test_rows_that_are_zero_or_not_finite_are_named(side, value):
    pair = [torch.eye(3), torch.eye(3)]
    pair[side][1] = value
    name = ("image_embeddings", "text_embeddings")[side]
    with pytest.raises(ValueError, match=f"{name} has 1 rows that are zero or not finite, first row 1"):
        recall_at_k(*pair, torch.arange(3), [1])


@pytest.mark.parametrize("k", [0, 4, -1])
def test_a_k_outside_the_gallery_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k} does not fit a gallery of 3 images and 3 texts"):
        recall_at_k(torch.eye(3), torch.eye(3), torch.arange(3), [1, k])


@pytest.mark.parametrize(
    ("text_to_image", "message"),
    [([0, 1, 1], "1 images have no text"), ([0, 1, 3], "lie in 0..2"), ([-1, 1, 2], "lie in 0..2")],
)
def test_texts_that_do_not_fit_the_images_are_refused(text_to_image, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(torch.eye(3), torch.eye(3), torch.tensor(text_to_image))


def test_an_empty_side_is_refused():
    with pytest.raises(ValueError, match="n and m at least 1"):
        retrieval_ranks(torch.eye(3), torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
