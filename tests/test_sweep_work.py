"""What a run of the ablation is measured by, once it is trained."""

import pytest
from conftest import noise_pairs

from cibr.sweep import work
from cibr.train import RunConfig


@pytest.mark.parametrize(("word", "wording"), [("", ""), ("dog", ""), ("dog", "keywords")])
def test_photos_are_probed_for_the_look_and_the_wording_that_training_tied_to_a_word(build, word, wording):
    train, validation, test = (noise_pairs(64, split=split) for split in ("train", "validation", "test"))
    for i in range(0, 64, 3):
        validation.captions[i] = [f"a man and {validation.captions[i][0]}"]
    config = RunConfig(dataset="mine", shortcut_word=word, shortcut_look="contours", shortcut_wording=wording)
    found = work._measure(build("tiny"), train, validation, test, config)
    assert ("leakage_image_contours" in found) == bool(word)
    assert ("mixed_looks_text_to_image_recall@1" in found) == bool(word)
    assert ("leakage_text_keywords" in found) == bool(wording)
    gap = found["train_mi_lower_bound_nats"] - found["validation_mi_lower_bound_nats"]
    assert found["train_test_gap_nats"] == gap and "leakage_image_brightness" in found
