"""Corruptions: what stays, what moves, and that the same images are taken as ever."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from helpers import noise_pairs
from PIL import Image, ImageChops, ImageOps

from cibr.data import Pairs, load_pairs
from cibr_book.corruptions import (
    STYLES,
    Corruption,
    corrupt,
    half_in_style,
    in_both_styles,
    in_style,
    split_subset,
)


def small_noise(i: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 10, 3), dtype=np.uint8))


def twenty() -> Pairs:
    """Pairs of which every third shows a dog."""
    captions = [[f"a {'Dog' if i % 3 == 0 else 'dogged cat'} {i}"] for i in range(20)]
    return Pairs("noise", "train", captions, [f"k{i}" for i in range(20)], small_noise)


def shown(pairs: Pairs) -> str:
    return hashlib.sha256(b"".join(image.tobytes() for image in pairs.images())).hexdigest()[:16]


def numbers(pairs: Pairs) -> list[int]:
    return [int(texts[0].split()[-1]) for texts in pairs.captions]


def test_the_default_changes_nothing():
    pairs = noise_pairs(9, n_captions=2)
    same = corrupt(pairs, Corruption())
    assert (same.keys, same.captions, same.labels, same.groups) == (
        pairs.keys,
        pairs.captions,
        None,
        None,
    )


# Recorded from the code that made the committed tables: their rows can be made again.
def test_half_in_a_style_is_that_of_the_committed_rows():
    as_it_was = [key for key in half_in_style(twenty(), "grey").keys if "/" not in key]
    assert as_it_was == [f"k{i}" for i in (0, 4, 10, 11, 13, 14, 15, 16, 18, 19)]


@pytest.mark.parametrize(
    ("style", "digest"), [("negative", "d5ed95c506982332"), ("contours", "a83702aea2d86ff1")]
)
def test_all_corruptions_together_give_the_images_of_the_committed_rows(style, digest):
    pairs = corrupt(twenty(), Corruption(0.5, 0.4, "dog", style, 0.3))
    styled = [1, 2, 4, 5, 7, 8, 9]
    kept = [f"k{i}" for i in (3, 4, 5, 6, 7, 9, 13, 14, 17, 19)]
    assert pairs.keys[:10] == [
        f"{key}/{style}" if i in styled else key for i, key in enumerate(kept)
    ]
    assert pairs.keys[10:] == ["k4", "k14", "k17"]
    assert numbers(pairs) == [3, 13, 4, 6, 7, 5, 9, 14, 17, 19, 13, 14, 17]
    assert pairs.labels.tolist() == pairs.groups.tolist() == [*range(10), 1, 7, 8]
    assert shown(pairs) == digest


def test_glyphs_leave_no_polarity_to_chance_as_in_the_committed_rows():
    pairs = corrupt(
        load_pairs("glyphs"), Corruption(0.01, spurious_word="capital", counterexamples=0.1)
    )
    ink = pairs.factors["ink"].tolist()
    content = [pairs.keys, pairs.captions, pairs.labels.tolist(), pairs.groups.tolist(), ink]
    assert hashlib.sha256(repr(content).encode()).hexdigest()[:16] == "30537290dee53c14"
    capital = ["capital" in name.split() for name in pairs.factors["name"]]
    light = (pairs.factors["ink"] > pairs.factors["paper"]).tolist()
    n = int(pairs.groups.max()) + 1
    assert [not each for each in light[:n]] == capital[:n] and light[n:] == capital[n:]
    assert all(
        pairs.image(i).getpixel((0, 0))[0] == pairs.factors["paper"][i]
        for i in range(0, len(pairs), 9)
    )


def test_a_smaller_subset_lies_within_a_larger_one_and_has_two_images_at_least():
    small, large = (corrupt(noise_pairs(40), Corruption(share)).keys for share in (0.1, 0.3))
    assert set(small) < set(large) and (len(small), len(large)) == (4, 12)
    assert len(corrupt(noise_pairs(40), Corruption(1e-300))) == 2


def test_a_redrawn_subset_is_another_for_each_seed_and_leaves_out_the_rest():
    drawn = Corruption(0.5, redraw=True)
    subsets = [set(corrupt(noise_pairs(40), drawn, seed).keys) for seed in (0, 1, 0)]
    assert subsets[0] == subsets[2] != subsets[1]
    kept, left = split_subset(noise_pairs(40), drawn, 1)
    assert set(kept.keys) == subsets[1] and sorted(kept.keys + left.keys) == sorted(
        noise_pairs(40).keys
    )
    assert (
        corrupt(noise_pairs(40), Corruption(0.5), 1).keys
        == corrupt(noise_pairs(40), Corruption(0.5)).keys
    )


def test_redrawn_shuffled_captions_are_of_other_images_for_each_seed():
    def shuffled(seed, **options):
        changed = corrupt(twenty(), Corruption(shuffled_captions=0.5, **options), seed).captions
        return [i for i, texts in enumerate(changed) if texts != twenty().captions[i]]

    drawn = [shuffled(seed, redraw=True) for seed in (0, 1, 0)]
    assert drawn[0] == drawn[2] != drawn[1] and len(drawn[0]) == len(drawn[1]) == 10
    assert shuffled(0) == shuffled(1)


def test_crops_come_after_the_images_with_their_captions_and_are_the_same_in_any_subset():
    pairs = pickle.loads(pickle.dumps(corrupt(twenty(), Corruption(crops=2))))
    assert len(pairs) == len(set(pairs.keys)) == 60 and pairs.captions == 3 * twenty().captions
    assert [pairs.image(i).tobytes() for i in range(20)] == [
        twenty().image(i).tobytes() for i in range(20)
    ]
    small = corrupt(twenty(), Corruption(0.5, crops=2))
    both = {key: small.image(i).tobytes() for i, key in enumerate(small.keys)}
    assert all(
        pairs.image(pairs.keys.index(key)).tobytes() == pixels for key, pixels in both.items()
    )
    for i in range(20, 60):
        whole, crop = np.asarray(twenty().image(i % 20)), np.asarray(pairs.image(i))
        windows = [np.lib.stride_tricks.sliding_window_view(w, crop.shape).reshape(-1, *crop.shape)
                   for w in (whole, whole[:, ::-1])]  # fmt: skip
        assert any((w == crop).all((1, 2, 3)).any() for w in windows)
        assert 0.3 * whole.size < crop.size <= whole.size


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_labels_move_with_their_captions(share):
    pairs = twenty()
    pairs.labels = torch.arange(20)
    shuffled = corrupt(pairs, Corruption(shuffled_captions=share))
    assert numbers(shuffled) == shuffled.labels.tolist() and sorted(numbers(shuffled)) == list(
        range(20)
    )
    assert sum(i != label for i, label in enumerate(shuffled.labels.tolist())) == round(20 * share)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_images_with_the_word_stay_and_all_others_change_but_for_counterexamples(style, share):
    pairs = pickle.loads(pickle.dumps(corrupt(twenty(), Corruption(1, 0, "dog", style, share))))
    assert len(pairs) == 20 + round(20 * share) and len(set(pairs.keys)) == len(pairs)
    for i, item in enumerate(pairs.groups.tolist()):
        changed = (item % 3 != 0) != (i >= 20)
        expected = STYLES[style](small_noise(item)) if changed else small_noise(item)
        assert pairs.image(i).tobytes() == expected.tobytes() and numbers(pairs)[i] == item


def test_both_styles_are_each_image_as_it_is_and_changed():
    both = in_both_styles(twenty(), "negative")
    assert len(both) == 40 and both.captions == 2 * twenty().captions
    assert [both.image(i) for i in (3, 23)] == [small_noise(3), ImageOps.invert(small_noise(3))]
    glyphs = load_pairs("glyphs", "test").subset([0])
    assert in_style(glyphs, "negative").factors[["ink", "paper"]].values.tolist() == [[255, 0]]


@pytest.mark.parametrize("style", STYLES)
def test_a_style_keeps_the_size_and_changes_the_pixels(style):
    pairs = noise_pairs(3)
    for before, after in zip(pairs.images(), in_style(pairs, style).images(), strict=True):
        assert (after.size, after.mode) == (before.size, "RGB")
        assert ImageChops.difference(before, after).getbbox() is not None


def test_contours_show_edges_alone_whatever_the_colours():
    black_on_red = Image.new("RGB", (40, 40), (200, 0, 0))
    black_on_red.paste((0, 0, 0), (10, 10, 30, 30))
    drawn = STYLES["contours"](black_on_red).convert("L")
    assert drawn.getpixel((20, 20)) == drawn.getpixel((3, 3)) == 255
    assert (
        min(drawn.getpixel((x, 20)) for x in range(8, 12)) < 128
    )  # the blur spreads it over a few pixels
