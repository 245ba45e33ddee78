"""Pairs: images, texts, labels and factors stay together; which match; any image becomes RGB."""

import io

import numpy as np
import pandas
import pytest
import torch
from data_files import encoded
from helpers import noise_pairs, unchecked
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cibr.data.pairs import Pairs, open_rgb, to_rgb


def shade(i: int) -> Image.Image:
    """An image that shows its index."""
    return Image.new("RGB", (1, 1), (i, i, i))


def with_captions(*captions, **about):
    keys = [f"k{i}" for i in range(len(captions))]
    return Pairs("set", "train", [list(texts) for texts in captions], keys, shade, **about)


def test_texts_are_stripped_and_point_at_their_images():
    pairs = with_captions(["a", " b\r"], ["c"], ["d", "", "\te", "f"])
    assert pairs.captions == [["a", "b"], ["c"], ["d", "e", "f"]]
    assert pairs.texts() == list("abcdef")
    assert pairs.text_to_image().tolist() == [0, 0, 1, 2, 2, 2]
    assert pairs.subset([]).text_to_image().shape == (0,)


def test_a_subset_of_a_subset_keeps_everything_of_an_image_together():
    factors = pandas.DataFrame({"size": [1, 2, 3]}, index=["x", "y", "z"])
    about = dict(labels=torch.tensor([7, 8, 9]), groups=torch.tensor([0, 0, 5]), factors=factors)
    pairs = with_captions(["a", "b"], "c", "d", classnames=["x"], **about)
    part = pairs.subset(torch.tensor([2, 0])).subset(np.array([1, 0, 1]))
    assert part.keys == ["k0", "k2", "k0"]
    assert part.captions == [["a", "b"], ["d"], ["a", "b"]]
    assert [image.getpixel((0, 0))[0] for image in part.images()] == [0, 2, 0]
    assert [image.getpixel((0, 0))[0] for image in part.images([1])] == [2]
    assert (part.labels.tolist(), part.groups.tolist()) == ([7, 9, 7], [0, 5, 0])
    assert part.factors["size"].tolist() == [1, 3, 1]
    assert part.factors.index.tolist() == [0, 1, 2]
    assert (part.name, part.split, part.classnames) == ("set", "train", ["x"])


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_a_boolean_mask_selects_and_is_not_taken_for_indices(mask):
    chosen = [key for key, is_in in zip(("k0", "k1", "k2"), mask, strict=True) if is_in]
    pairs = with_captions("a", "b", "c")
    assert pairs.subset(torch.tensor(mask)).keys == pairs.subset(np.array(mask)).keys == chosen
    shown = [image.tobytes() for image in pairs.images(torch.tensor(mask))]
    assert shown == [pairs.image(int(key[1])).tobytes() for key in chosen]


def slow_labels(pairs):
    """Merges images that share a caption or a group until nothing changes."""
    labels = list(range(len(pairs)))
    for _ in labels:
        for i, j in np.ndindex(len(labels), len(labels)):
            same_group = pairs.groups is not None and pairs.groups[i] == pairs.groups[j]
            if same_group or set(pairs.captions[i]) & set(pairs.captions[j]):
                labels[i] = labels[j] = min(labels[i], labels[j])
    return labels


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("grouped", [False, True])
def test_match_labels_join_images_that_share_captions_or_groups_as_a_slow_search_does(
    seed, grouped
):
    rng = np.random.default_rng(seed)
    captions = [[f"text {k}" for k in rng.integers(0, 25, 1 + i % 3)] for i in range(16)]
    groups = torch.from_numpy(rng.integers(-5, 30, 16)) if grouped else None
    pairs = with_captions(*captions, groups=groups)
    first_images = slow_labels(pairs)
    numbers = {first: number for number, first in enumerate(dict.fromkeys(first_images))}
    assert pairs.match_labels().tolist() == [numbers[first] for first in first_images]


def test_given_labels_are_the_match_labels():
    about = dict(labels=[3, 1, 1], groups=torch.tensor([0, 0, 0]))
    with unchecked():  # a list, too
        assert with_captions("a", "a", "b", **about).match_labels().tolist() == [3, 1, 1]


def test_retrieval_is_by_pairs_where_captions_tell_images_apart_or_images_have_several():
    assert with_captions("a", "b").paired
    assert with_captions(["a", "b"], "c", "c").paired
    assert not with_captions("a", "a").paired
    assert not with_captions("a", "b", labels=torch.arange(2)).paired
    assert not with_captions(["a", "b"], ["c", "d"], groups=torch.arange(2)).paired


@pytest.mark.parametrize(
    ("n", "least", "most"), [(1000, 70, 130), (300, 35, 65), (40, 3, 13), (3, 1, 2)]
)
def test_a_tenth_is_held_out_and_of_few_images_some_fifty_or_a_fifth(n, least, most):
    pairs = noise_pairs(n)
    rest, held_out = pairs.hold_out()
    assert least <= len(held_out) <= most and held_out.split == "validation"
    assert sorted(rest.keys + held_out.keys) == sorted(pairs.keys)


def test_the_number_of_images_held_out_has_a_limit(monkeypatch):
    pairs = noise_pairs(700)
    held_out = pairs.hold_out()[1]
    monkeypatch.setattr("cibr.data.pairs._MAX_HELD_OUT", 40)
    fewest = pairs.hold_out()[1]
    assert len(fewest) == 40 and {*fewest.keys} < {*held_out.keys}


def reopened(image, **options):
    return Image.open(io.BytesIO(encoded(image, **options)))


MODES = ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "RGBa", "RGBX"]
MODES += ["CMYK", "YCbCr", "HSV", "LAB", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_rgb_of_the_same_size(mode):
    image = to_rgb(Image.new(mode, (3, 2)))
    assert (image.mode, image.size) == ("RGB", (3, 2))


ON_WHITE = [  # a pixel, and its grey on white
    (Image.new("RGBA", (1, 1), (9, 9, 9, 0)), 255),
    (Image.new("RGBA", (1, 1), (9, 9, 9, 128)), 132),
    (Image.new("LA", (1, 1), (9, 0)), 255),
    (Image.new("PA", (1, 1), (9, 0)), 255),
    (reopened(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), 255),
    (reopened(Image.new("L", (1, 1), 77), transparency=77), 255),
]


@pytest.mark.parametrize(("image", "grey"), ON_WHITE)
def test_transparent_pixels_show_white(image, grey):
    assert to_rgb(image).getpixel((0, 0)) == (grey,) * 3


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
def test_16_bit_greys_are_scaled_to_8(mode):
    greys = [0, 257, 129, 51 * 257, 65535]
    data = np.array(greys, ">u2" if mode == "I;16B" else "<u2").tobytes()
    image = to_rgb(Image.frombytes(mode, (5, 1), data))
    assert [image.getpixel((i, 0)) for i in range(5)] == [(v,) * 3 for v in (0, 1, 1, 51, 255)]


def test_photos_turn_upright_by_their_exif_orientation():
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise: the left half comes to the top
    upright = to_rgb(reopened(image, exif=exif))
    assert upright.size == (8, 16)
    assert (upright.getpixel((4, 2)), upright.getpixel((4, 13))) == ((0, 0, 0), (255, 255, 255))


def test_an_image_far_longer_than_wide_is_named_and_not_scaled():
    for size in ((1, 501), (501, 1)):
        with pytest.raises(ValueError, match="thin .*one side more than 500 times"):
            open_rgb(encoded(Image.new("L", size), "PNG"), "thin")
    assert open_rgb(encoded(Image.new("L", (1, 500)), "PNG")).size == (1, 500)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_rgb(animation, "a gif").getpixel((0, 0)) == (255, 0, 0)
