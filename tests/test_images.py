"""Any picture becomes 8-bit RGB: upright, on white where transparent, deep greys scaled."""

import io

import numpy as np
import pytest
from PIL import Image

from cibr.images import open_rgb, to_rgb


def pixel(image, at=(0, 0)):
    assert image.mode == "RGB"
    return image.getpixel(at)


def reopened(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "La", "RGBa", "RGBX",
                                  "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16", "F"])  # fmt: skip
def test_every_mode_gives_rgb_of_the_same_size(mode):
    image = to_rgb(Image.new(mode, (3, 2)))
    assert (image.mode, image.size) == ("RGB", (3, 2))


@pytest.mark.parametrize(
    ("mode", "clear", "half_black"),
    [("RGBA", (9, 9, 9, 0), (0, 0, 0, 128)), ("LA", (9, 0), (0, 128)), ("PA", (9, 0), (0, 128))],
)
def test_transparent_pixels_show_white_paper(mode, clear, half_black):
    image = Image.new(mode, (1, 1), clear)
    assert pixel(to_rgb(image)) == (255, 255, 255)
    image.putpixel((0, 0), half_black)
    assert pixel(to_rgb(image)) == (127, 127, 127)


def test_a_palette_file_with_a_transparent_colour_shows_white_there():
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image = to_rgb(reopened(image, transparency=0))
    assert [pixel(image, (0, 0)), pixel(image, (1, 0))] == [(255, 255, 255), (0, 0, 255)]


@pytest.mark.parametrize("colour", [(10, 20, 30), 77])
def test_a_file_with_a_transparent_colour_but_no_alpha_shows_white_there(colour):
    image = Image.new("L" if isinstance(colour, int) else "RGB", (1, 1), colour)
    assert pixel(to_rgb(reopened(image, transparency=colour))) == (255, 255, 255)


def test_a_16_bit_grey_file_is_scaled_not_clipped():
    grey = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    image = reopened(Image.fromarray(grey))
    assert image.mode.startswith("I")
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 51, 255]], np.int32), [0, 51, 255]),
        (np.array([[0, 51 * 257, 65535]], np.int32), [0, 51, 255]),
        (np.array([[-100, 0, 155]], np.int32), [0, 100, 255]),
        (np.array([[0, 0.2, 1.0]], np.float32), [0, 51, 255]),
        (np.array([[0, 51.0, 255.0]], np.float32), [0, 51, 255]),
        (np.array([[0, 1e6, 5e6]], np.float32), [0, 51, 255]),
        (np.array([[np.nan, np.inf, 1.0]], np.float32), [0, 0, 255]),
        (np.full((1, 3), 1e6, np.float32), [0, 0, 0]),
    ],
)
def test_wide_greys_are_scaled_by_the_smallest_usual_range_that_holds_them(values, expected):
    assert np.asarray(to_rgb(Image.fromarray(values)))[0, :, 0].tolist() == expected


def test_cmyk_ink_becomes_its_colour():
    assert pixel(to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0)))) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photos_turn_upright_by_their_exif_orientation(kind):
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown after a quarter turn clockwise: the left half comes to the top
    upright = to_rgb(reopened(image, kind, exif=exif))
    assert upright.size == (8, 16)
    assert max(pixel(upright, (4, 2))) < 40 and min(pixel(upright, (4, 13))) > 215
    assert np.array_equal(to_rgb(upright), upright)


def test_rgb_pixels_stay_as_they_are_and_the_picture_is_a_new_one():
    image = Image.effect_noise((8, 8), 60).convert("RGB")
    result = to_rgb(image)
    assert np.array_equal(result, image) and result is not image


def test_a_moving_picture_gives_its_first_frame():
    file = io.BytesIO()
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert pixel(open_rgb(file.getvalue(), "a gif")) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_file_cut_short_or_empty_raises_with_its_name(kind):
    file = io.BytesIO()
    Image.effect_noise((64, 64), 90).convert("RGB").save(file, kind)
    for data in (file.getvalue()[:-400], file.getvalue()[:20], b"", b"not a picture"):
        with pytest.raises(ValueError, match="photo 7 does not decode as an image"):
            open_rgb(data, "photo 7")


def test_a_missing_file_raises_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone.png"):
        open_rgb(tmp_path / "gone.png", "gone.png")
