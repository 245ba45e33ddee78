"""Pairs: images, texts, labels and factors stay together; the unusable are counted up to a limit."""

import numpy as np
import pandas
import pytest
import torch
from PIL import Image

from cibr.data.pairs import Pairs, Skips, clean_texts, without_undecodable


def shade(i: int) -> Image.Image:
    """A picture that shows its index; number 3 is broken."""
    if i == 3:
        raise ValueError("picture 3 does not decode")
    return Image.new("RGB", (1, 1), (i, i, i))


def shown(pairs):
    return [image.getpixel((0, 0))[0] for image in pairs.images()]


@pytest.fixture
def pairs():
    captions = [["a", " b "], ["c"], ["d", "", "e", "f"]]
    factors = pandas.DataFrame({"size": [1, 2, 3]}, index=["x", "y", "z"])
    return Pairs("set", "train", captions, ["k0", "k1", "k2"], shade, torch.tensor([7, 8, 9]), factors)


def test_texts_are_stripped_and_empty_ones_dropped(pairs):
    assert pairs.captions == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert clean_texts([" \t", "x\r"]) == ["x"]


def test_flattened_texts_point_at_their_images(pairs):
    slow = [(text, i) for i, texts in enumerate(pairs.captions) for text in texts]
    assert list(zip(pairs.texts(), pairs.text_to_image().tolist(), strict=True)) == slow
    assert pairs.subset([]).text_to_image().shape == (0,)


def test_a_subset_of_a_subset_keeps_images_texts_labels_and_factors_together(pairs):
    part = pairs.subset(torch.tensor([2, 0])).subset(np.array([1, 0, 1]))
    assert part.keys == ["k0", "k2", "k0"] and shown(part) == [0, 2, 0]
    assert part.captions == [["a", "b"], ["d", "e", "f"], ["a", "b"]]
    assert part.labels.tolist() == [7, 9, 7]
    assert part.factors["size"].tolist() == [1, 3, 1] and part.factors.index.tolist() == [0, 1, 2]
    assert len(pairs.subset([])) == len(pairs.subset([]).labels) == 0


def test_images_come_in_the_order_that_was_asked_for(pairs):
    assert [image.getpixel((0, 0))[0] for image in pairs.images([2, 0, 2])] == [2, 0, 2]
    assert shown(pairs) == [0, 1, 2]


@pytest.mark.parametrize("bad", [3, -1])
def test_an_index_out_of_range_raises(pairs, bad):
    with pytest.raises(IndexError, match="set has no image"):
        pairs.image(bad)
    with pytest.raises(IndexError, match="set has no pair"):
        pairs.subset([bad])


def test_lengths_that_disagree_and_images_without_text_are_refused():
    with pytest.raises(ValueError, match="captions for 1 images but labels for 2"):
        Pairs("x", "train", [["a"]], ["k"], shade, labels=torch.arange(2))
    with pytest.raises(ValueError, match="captions for 1 images but keys for 0"):
        Pairs("x", "train", [["a"]], [], shade)
    with pytest.raises(ValueError, match="sample 'k' of x has no text"):
        Pairs("x", "train", [[" "]], ["k"], shade)


def test_pictures_that_do_not_decode_are_skipped_and_counted_with_the_others():
    pairs = Pairs("set", "train", [["a"]] * 5, list("abcde"), shade)
    skips = Skips("set", "skip", 2)
    skips.add(ValueError("no text"))
    kept = without_undecodable(pairs, skips)
    assert (kept.keys, kept.n_skipped) == (list("abce"), 2)
    with pytest.raises(ValueError, match=r"(?s)more than max_skipped=2 .* no text.*picture 3"):
        without_undecodable(pairs, skips)
    assert len(without_undecodable(pairs, Skips("set", "raise", 0))) == 5


@pytest.mark.parametrize("options", [("ignore", 0), ("skip", -1), ("raise", 3)])
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match="on_error|max_skipped"):
        Skips("set", *options)
