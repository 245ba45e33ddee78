"""Pairs: images, texts, labels and factors stay together; which match; any image becomes RGB."""

import io

import numpy as np
import pandas
import pytest
import torch
from data_files import encoded
from helpers import noise_pairs
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
    assert pairs.texts() == list("abcdef")
    assert pairs.text_to_image().tolist() == [0, 0, 1, 2, 2, 2]
    assert pairs.subset([]).text_to_image().shape == (0,)


def test_a_subset_of_a_subset_keeps_everything_of_an_image_together():
    factors = pandas.DataFrame({"size": [1, 2, 3]}, index=["x", "y", "z"])
    about = dict(labels=torch.tensor([7, 8, 9]), groups=torch.tensor([0, 0, 5]), factors=factors)
    pairs = with_captions(["a", "b"], "c", "d", classnames=["x"], **about)
    part = pairs.subset(torch.tensor([2, 0])).subset(np.array([1, 0, 1]))
    assert part.keys == ["k0", "k2", "k0"] and part.captions[1:] == [["d"], ["a", "b"]]
    assert [image.getpixel((0, 0))[0] for image in part.images()] == [0, 2, 0]
    assert (part.labels.tolist(), part.groups.tolist()) == ([7, 9, 7], [0, 5, 0])
    assert part.factors["size"].tolist() == [1, 3, 1]
    assert (part.name, part.split, part.classnames) == ("set", "train", ["x"])


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_a_boolean_mask_selects_and_is_not_taken_for_indices(kind):
    pairs = with_captions("a", "b", "c")
    assert pairs.subset(kind([False, True, True])).keys == ["k1", "k2"]
    shown = [image.tobytes() for image in pairs.subset(kind([False, False, True])).images()]
    assert shown == [pairs.image(2).tobytes()]


def slow_labels(pairs):
    """Merges images that share a caption or a group until nothing changes."""
    labels = list(range(len(pairs)))
    for _ in labels:
        for i, j in np.ndindex(len(labels), len(labels)):
            same_group = pairs.groups is not None and pairs.groups[i] == pairs.groups[j]
            if same_group or set(pairs.captions[i]) & set(pairs.captions[j]):
                labels[i] = labels[j] = min(labels[i], labels[j])
    return labels


@pytest.mark.parametrize("seed", range(4))
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
    monkeypatch.setattr("cibr.data.pairs._MAX_HELD_OUT", 40)
    assert len(noise_pairs(700).hold_out()[1]) == 40


def reopened(image, **options):
    return Image.open(io.BytesIO(encoded(image, **options)))


ON_WHITE = [  # a pixel, and its grey
    (Image.new("RGBA", (1, 1), (9, 9, 9, 128)), 132),
    (Image.new("LA", (1, 1), (9, 0)), 255),
    (Image.new("PA", (1, 1), (9, 0)), 255),
    (reopened(Image.new("RGB", (1, 1), (1, 2, 3)), transparency=(1, 2, 3)), 255),
    (Image.new("1", (1, 1), 1), 255),
    (Image.new("L", (1, 1), 77), 77),
    (Image.new("P", (1, 1)), 0),
    (Image.new("CMYK", (1, 1)), 255),
    (Image.new("I;16", (1, 1), 51 * 257), 51),
]


@pytest.mark.parametrize(("image", "grey"), ON_WHITE, ids=lambda value: getattr(value, "mode", ""))
def test_every_mode_becomes_rgb_on_white(image, grey):
    assert to_rgb(image).getpixel((0, 0)) == (grey,) * 3


def test_photos_turn_upright_by_their_exif_orientation():
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise: the left half comes to the top
    upright = to_rgb(reopened(image, exif=exif))
    assert upright.size == (8, 16)
    assert (upright.getpixel((4, 2)), upright.getpixel((4, 13))) == ((0, 0, 0), (255, 255, 255))


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_rgb(animation, "a gif").getpixel((0, 0)) == (255, 0, 0)
