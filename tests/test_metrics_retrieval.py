"""Retrieval against a loop over queries and other implementations; ties count against, bad input is refused."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F

from cibr.metrics import ranking, recall_at_k, retrieval, retrieval_outcomes, retrieval_ranks, retrieval_scores


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


def tied_embeddings():
    """Whole numbers, whose products are exact: ties stay ties however the matrix is cut."""
    images, texts, text_to_image = embeddings()
    images, texts = torch.round(3 * images), torch.round(3 * texts)
    images[(images == 0).all(1)] = 1
    texts[(texts == 0).all(1)] = 1
    return images, texts, text_to_image


def slow_average_precision(cosines, right):
    """Down the list, wrong items before right ones that tie with them."""
    found, precisions = 0, []
    for place, (_, is_right) in enumerate(sorted((-c, r) for c, r in zip(cosines, right, strict=True)), 1):
        found += is_right
        precisions += [found / place] if is_right else []
    return statistics.fmean(precisions)


def test_scores_of_tied_embeddings_equal_a_loop_over_queries():
    images, texts, text_to_image = tied_embeddings()
    cosines, own = images @ texts.T, text_to_image.tolist()
    of_images = [slow_average_precision(row, [j == i for j in own]) for i, row in enumerate(cosines.tolist())]
    of_texts = [
        slow_average_precision(column, [i == own[j] for i in range(len(images))])
        for j, column in enumerate(cosines.T.tolist())
    ]
    found = retrieval_outcomes(images, texts, text_to_image)
    assert found.image_average_precisions.tolist() == pytest.approx(of_images)
    assert found.text_average_precisions.tolist() == pytest.approx(of_texts)
    scores = retrieval_scores(images, texts, text_to_image, (1, 5))
    assert scores["image_to_text_mean_average_precision"] == pytest.approx(statistics.fmean(of_images))
    assert scores["text_to_image_mean_average_precision"] == pytest.approx(statistics.fmean(of_texts))
    assert scores["image_to_text_median_rank"] == statistics.median(found.image_ranks.tolist()) + 1
    assert scores["text_to_image_median_rank"] == statistics.median(found.text_ranks.tolist()) + 1
    recalls = recall_at_k(images, texts, text_to_image, (1, 5))
    assert {k: scores[k] for k in recalls} == recalls and len(scores) == len(recalls) + 4


def test_ranks_of_the_first_right_text_agree_with_the_average_precisions_pass():
    images, texts, text_to_image = embeddings(300, 1500, 16)
    found, ranks = retrieval_outcomes(images, texts, text_to_image), retrieval_ranks(images, texts, text_to_image)
    assert all(torch.equal(x, y) for x, y in zip(found, ranks, strict=False))


@pytest.mark.parametrize(("block", "tile"), [(1, 1), (7, 50), (60, 2**18)])
def test_the_cut_into_blocks_and_tiles_does_not_change_the_ranks(block, tile, monkeypatch):
    whole = retrieval_outcomes(*tied_embeddings())
    monkeypatch.setattr(ranking, "BLOCK", block)
    monkeypatch.setattr(ranking, "TILE_ELEMENTS", tile)
    for part, full in zip(retrieval_outcomes(*tied_embeddings()), whole, strict=True):
        assert torch.equal(part, full)


def test_a_band_that_rounds_otherwise_costs_a_second_pass_and_no_rank(monkeypatch):
    images, texts, text_to_image = embeddings(100, 700, 32)
    wanted, passes, one_pass = retrieval_ranks(images, texts, text_to_image), [], retrieval._pass
    band = retrieval._own_of_band

    def other_rounding(*args):
        return torch.nextafter(band(*args), torch.tensor(2.0))

    monkeypatch.setattr(retrieval, "_own_of_band", other_rounding)
    monkeypatch.setattr(retrieval, "_pass", lambda *args: passes.append(1) or one_pass(*args))
    for found, rank in zip(retrieval_ranks(images, texts, text_to_image), wanted, strict=True):
        assert torch.equal(found, rank)
    assert len(passes) == 2


def test_the_order_of_the_texts_does_not_matter():
    images, texts, text_to_image = embeddings(200, 1200, 48)
    order = text_to_image.argsort(stable=True)
    image_ranks, text_ranks = retrieval_ranks(images, texts, text_to_image)
    by_image = retrieval_ranks(images, texts[order], text_to_image[order])
    assert torch.equal(by_image[0], image_ranks) and torch.equal(by_image[1], text_ranks[order])


@pytest.mark.parametrize(
    "sizes",
    [(23, 60, 6), (130, 517, 64), (257, 257, 128), (6, 1041, 100), (17, 1025, 5), (70, 3, 31), (1100, 1, 512)],
)
def test_collapsed_embeddings_score_zero_and_not_a_hundred_percent(sizes):
    n, extra, d = sizes
    _, _, text_to_image = embeddings(n, n + extra, d)
    point = F.normalize(torch.randn(1, d, generator=torch.Generator().manual_seed(1)), dim=1)
    found = recall_at_k(point.repeat(n, 1), point.repeat(n + extra, 1), text_to_image, (1, 5))
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
