"""Self-training: which captions unpaired photos get, and how often the true pairs come."""

import torch
from helpers import noise_pairs

from cibr.models import features
from cibr.models.features import prepare
from cibr.train import configure
from cibr_book.experiments import unpaired
from cibr_book.experiments.corruptions import Corruption
from cibr_book.experiments.unpaired import with_unpaired


def test_unpaired_photos_get_the_nearest_captions_of_others_and_pairs_come_as_often_as_asked(
    build, monkeypatch, tmp_path
):
    whole = noise_pairs(24, n_captions=2)
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(unpaired, "load_pairs", lambda name, split: whole)
    config = configure(model="frozen", seed=0)
    half = Corruption(fraction=0.5, redraw=True)
    model = build("frozen")
    kept, _ = with_unpaired(model, config, half)
    train, cca = with_unpaired(model, config, half, self_training=True, repeats=3)
    of_texts = prepare(model, kept).images[kept.text_to_image()]
    torch.testing.assert_close(cca.image_mean, of_texts.mean(0))
    assert train.keys[:36] == kept.keys * 3 and train.captions[:36] == kept.captions * 3
    left = [key for key in whole.keys if key not in kept.keys]
    assert train.keys[36:] == left
    alone = whole.subset(torch.tensor([whole.keys.index(key) for key in left]))
    inputs = prepare(model, alone)
    similarity = cca.images(inputs.images) @ cca.texts(inputs.texts[0]).T
    n_texts = torch.tensor([len(texts) for texts in alone.captions])
    own = torch.eye(len(alone)).repeat_interleave(n_texts, 1) > 0
    assert own.gather(1, similarity.argmax(1, True)).any()  # the rule decides here
    similarity[own] = -2
    assert train.captions[36:] == [[alone.texts()[i]] for i in similarity.argmax(1).tolist()]
    assert train.image(40).tobytes() == whole.image(whole.keys.index(train.keys[40])).tobytes()
