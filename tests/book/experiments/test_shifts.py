"""Degraded test photos: what each shift does, that it repeats, and that recalls are those of it."""

import io

import numpy as np
import pytest
from helpers import noise_pairs
from PIL import Image, ImageEnhance, ImageFilter

from cibr.metrics.retrieval import retrieval_recalls
from cibr.models import features
from cibr.models.features import embed_pairs, prepare
from cibr_book.experiments.shifts import SHIFTS, _shifted, shifted_recalls


def photo():
    across = np.linspace(0, 255, 96)[None, :, None]
    waves = 40 * np.sin(np.arange(96) / 3)[:, None, None]
    pixels = np.broadcast_to(across * 0.6 + 50, (96, 96, 3)) + waves
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def pairs_of(image):
    pairs = noise_pairs(6)
    pairs.load = lambda i: image
    return pairs


def degraded(shift, strength):
    return np.asarray(_shifted(pairs_of(photo()), shift, strength).image(2)).astype(float)


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_shift_repeats_and_has_keys_of_its_own(shift):
    np.testing.assert_array_equal(degraded(shift, 2), degraded(shift, 2))
    pairs = pairs_of(photo())
    assert _shifted(pairs, shift, 2).keys == [f"{key}/{shift}-2" for key in pairs.keys]


def jpeg(quality):
    file = io.BytesIO()
    photo().save(file, "JPEG", quality=quality)
    return Image.open(file)


STATED = {
    "blur": [photo().filter(ImageFilter.GaussianBlur(radius)) for radius in (1, 2, 4)],
    "contrast": [ImageEnhance.Contrast(photo()).enhance(f) for f in (0.5, 0.25, 0.1)],
    "jpeg": [jpeg(quality) for quality in (25, 10, 5)],
}


@pytest.mark.parametrize(("shift", "images"), STATED.items())
def test_a_shift_has_the_three_amounts_that_the_study_states(shift, images):
    for strength, image in zip((1, 2, 3), images, strict=True):
        np.testing.assert_array_equal(degraded(shift, strength), np.asarray(image))


def test_noise_and_occlusion_differ_between_images_and_have_the_amounts_stated():
    flat = Image.new("RGB", (96, 96), (128, 128, 128))
    for strength, deviation in ((1, 20), (2, 40), (3, 80)):
        pixels = np.random.default_rng(0).normal(128, deviation, 100_000).clip(0, 255)
        noise = np.asarray(_shifted(pairs_of(flat), "noise", strength).image(0)).astype(float)
        assert abs(noise.std() - pixels.std()) < 1.5 and abs(noise.mean() - 128) < 1.5
    for strength, share in ((1, 0.1), (2, 0.25), (3, 0.5)):
        grey = (degraded("occlusion", strength) == 128).all(2)
        assert abs(grey.mean() - share) < 0.02
    for shift in ("noise", "occlusion"):
        first, second = (_shifted(pairs_of(photo()), shift, 1).image(i) for i in (0, 1))
        assert first.tobytes() != second.tobytes()


def test_recalls_are_those_of_the_degraded_photos(build, monkeypatch, tmp_path):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    model, pairs = build("frozen"), noise_pairs(24)
    found = shifted_recalls(model, pairs)
    assert set(found) == {f"shift/{shift}-{s}/recall" for shift in SHIFTS for s in (1, 2, 3)}
    for shift in ("noise", "contrast"):
        embedded = embed_pairs(model, prepare(model, _shifted(pairs, shift, 3)))
        recalls = retrieval_recalls(*embedded, *pairs.retrieval_targets())
        kept = [value for name, value in recalls.items() if name.split("@")[1] in ("1", "5", "10")]
        assert found[f"shift/{shift}-3/recall"] == pytest.approx(np.mean(kept)) and len(kept) == 6
    assert len({round(value, 6) for value in found.values()}) > 1
