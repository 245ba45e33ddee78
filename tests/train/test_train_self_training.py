"""Self-training: which captions unpaired photos get, and how often the true pairs come."""

import pytest
import torch
from helpers import noise_pairs

from cibr.models import features
from cibr.models.features import prepare
from cibr.train import configure, with_pseudo_pairs
from cibr_book.experiments.corruptions import Corruption, split_subset


def test_unpaired_photos_get_the_nearest_captions_of_others_and_pairs_come_as_often_as_asked(
    build, monkeypatch, tmp_path
):
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    whole, model = noise_pairs(24, n_captions=2), build("frozen")
    kept, left = split_subset(whole, Corruption(fraction=0.5, redraw=True))
    train, cca = with_pseudo_pairs(model, configure(model="frozen", seed=0), kept, left, 3)
    of_texts = prepare(model, kept).images[kept.text_to_image()]
    torch.testing.assert_close(cca.image_mean, of_texts.mean(0))
    assert train.keys == kept.keys * 3 + left.keys and train.captions[:36] == kept.captions * 3
    inputs = prepare(model, left)
    similarity = cca.images(inputs.images) @ cca.texts(inputs.texts[0]).T
    own = left.text_to_image() == torch.arange(12)[:, None]
    assert own.gather(1, similarity.argmax(1, True)).any()  # the rule decides here
    similarity[own] = -2
    assert train.captions[36:] == [[left.texts()[i]] for i in similarity.argmax(1).tolist()]
    assert train.image(40).tobytes() == left.image(4).tobytes()


def test_self_training_needs_two_unpaired_images_and_the_true_pairs(build):
    model, pairs, config = build("frozen"), noise_pairs(6), configure(model="frozen")
    for unpaired, repeats in ((noise_pairs(1), 1), (noise_pairs(4), 0)):
        with pytest.raises(ValueError, match="give two images or more, and 1 or more"):
            with_pseudo_pairs(model, config, pairs, unpaired, repeats)
