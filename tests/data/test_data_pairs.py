"""Pairs: images, texts, labels and factors stay together; which match; any image becomes 8-bit RGB."""

import io
import os

import numpy as np
import pandas
import pytest
import torch
from data_files import encoded
from PIL import Image

from cibr.data import load_pairs
from cibr.data.pairs import Pairs, Skips, clean_texts, open_rgb, to_rgb, without_undecodable


def shade(i: int) -> Image.Image:
    """An image that shows its index; number 3 is broken."""
    if i == 3:
        raise ValueError("image 3 does not decode")
    return Image.new("RGB", (1, 1), (i, i, i))


def shown(pairs):
    return [image.getpixel((0, 0))[0] for image in pairs.images()]


@pytest.fixture
def pairs():
    captions = [["a", " b "], ["c"], ["d", "", "e", "f"]]
    factors = pandas.DataFrame({"size": [1, 2, 3]}, index=["x", "y", "z"])
    return Pairs(
        "set", "train", captions, ["k0", "k1", "k2"], shade, torch.tensor([7, 8, 9]), factors
    )


def with_captions(*captions, **options):
    return Pairs(
        "set",
        "train",
        [list(texts) for texts in captions],
        list(map(str, captions)),
        shade,
        **options,
    )


def test_texts_are_stripped_and_point_at_their_images(pairs):
    assert pairs.captions == [["a", "b"], ["c"], ["d", "e", "f"]] and clean_texts(
        [" \t", "x\r"]
    ) == ["x"]
    assert (pairs.texts(), pairs.text_to_image().tolist()) == (list("abcdef"), [0, 0, 1, 2, 2, 2])
    assert pairs.subset([]).text_to_image().shape == (0,)


def test_a_subset_of_a_subset_keeps_images_texts_labels_and_factors_together(pairs):
    part = pairs.subset(torch.tensor([2, 0])).subset(np.array([1, 0, 1]))
    assert part.keys == ["k0", "k2", "k0"] and shown(part) == [0, 2, 0]
    assert part.captions == [["a", "b"], ["d", "e", "f"], ["a", "b"]] and part.labels.tolist() == [
        7,
        9,
        7,
    ]
    assert part.factors["size"].tolist() == [1, 3, 1] and part.factors.index.tolist() == [0, 1, 2]


def test_images_that_do_not_decode_are_skipped_and_counted_with_the_others():
    five = with_captions("a", "b", "c", "d", "e")
    skips = Skips("set", 2)
    skips.add(ValueError("no text"))
    kept = without_undecodable(five, skips)
    assert (kept.captions, kept.n_skipped) == ([["a"], ["b"], ["c"], ["e"]], 2)
    with pytest.raises(ValueError, match=r"(?s)more than max_skipped=2 .* no text.*image 3"):
        without_undecodable(five, skips)
    assert len(without_undecodable(five, Skips("set"))) == 5


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
    slow, found = slow_labels(pairs), pairs.match_labels().tolist()
    assert [[a == b for b in found] for a in found] == [[a == b for b in slow] for a in slow]
    assert list(dict.fromkeys(found)) == list(range(len(set(slow))))


def test_given_labels_are_the_match_labels():
    pairs = with_captions(
        "a", "a", "b", labels=torch.tensor([3, 1, 1]), groups=torch.tensor([0, 0, 0])
    )
    assert pairs.match_labels().tolist() == [3, 1, 1]
    assert with_captions().match_labels().tolist() == []


def test_retrieval_is_by_pairs_where_captions_tell_images_apart_or_images_have_several():
    assert with_captions("a", "b").paired and with_captions(["a", "b"], "c", "c").paired
    assert (
        not with_captions("a", "a").paired
        and not with_captions("a", "b", labels=torch.arange(2)).paired
    )
    assert not with_captions(["a", "b"], ["c", "d"], groups=torch.arange(2)).paired


@pytest.mark.data
@pytest.mark.skipif("CIBR_DATA" not in os.environ, reason="CIBR_DATA is unset")
def test_flickr8k_has_five_captions_an_image_and_few_images_that_share_one():
    pairs = load_pairs("flickr8k", "test")
    assert len(set(pairs.keys)) == 1000 and {len(texts) for texts in pairs.captions} == {5}
    counts = pairs.match_labels().bincount()
    assert (len(counts), int(counts.max()), pairs.paired) == (994, 3, True)


def test_prompts_are_every_class_name_in_every_template():
    about = dict(
        labels=torch.tensor([0]),
        classnames=["cat", "sea lion"],
        templates=["a {c}", "{c}, {small}"],
    )
    pairs = with_captions("cat", **about)
    assert pairs.prompts() == [["a cat", "cat, {small}"], ["a sea lion", "sea lion, {small}"]]
    assert pairs.subset([0]).prompts() == pairs.prompts()


def pixel(image, at=(0, 0)):
    assert image.mode == "RGB"
    return image.getpixel(at)


def reopened(image, *kind, **options):
    return Image.open(io.BytesIO(encoded(image, *kind, **options)))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "RGBa", "RGBX",
                                  "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"])  # fmt: skip
def test_every_mode_gives_rgb_of_the_same_size(mode):
    image = to_rgb(Image.new(mode, (3, 2)))
    assert (image.mode, image.size) == ("RGB", (3, 2))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparent_pixels_show_white(mode):
    grey = (9, 9, 9) if mode == "RGBA" else (9,)
    image = Image.new(mode, (1, 1), (*grey, 0))
    assert pixel(to_rgb(image)) == (255, 255, 255)
    image.putpixel((0, 0), (*[0 for _ in grey], 128))
    assert pixel(to_rgb(image)) == (127, 127, 127)


@pytest.mark.parametrize("colour", [(10, 20, 30), 77])
def test_a_file_with_a_transparent_colour_but_no_alpha_shows_white_there(colour):
    image = Image.new("L" if isinstance(colour, int) else "RGB", (1, 1), colour)
    assert pixel(to_rgb(reopened(image, transparency=colour))) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 257, 65535]], np.uint16), [0, 1, 255]),
        (np.array([[0, 51, 255]], np.int32), [0, 51, 255]),
        (np.array([[0, 51 * 257, 65535]], np.int32), [0, 51, 255]),
        (np.array([[-100, 0, 155]], np.int32), [0, 100, 255]),
        (np.array([[0, 0.2, 1.0]], np.float32), [0, 51, 255]),
        (np.array([[0, 1e6, 5e6]], np.float32), [0, 51, 255]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [0, 0, 255]),
        (np.full((1, 3), 1e6, np.float32), [0, 0, 0]),
    ],
)
def test_deep_greys_are_scaled_by_the_smallest_usual_range_that_holds_them(values, expected):
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photos_turn_upright_by_their_exif_orientation(kind):
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise: the left half comes to the top
    upright = to_rgb(reopened(image, kind, exif=exif))
    assert (
        upright.size == (8, 16)
        and max(pixel(upright, (4, 2))) < 40
        and min(pixel(upright, (4, 13))) > 215
    )
    assert np.array_equal(to_rgb(upright), upright) and to_rgb(upright) is not upright


def test_an_animation_gives_its_first_frame_and_ink_its_colour():
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(open_rgb(animation, "a gif")) == (255, 0, 0)
    assert pixel(to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0)))) == (255, 0, 0)
