"""Photos and captions without pairing: EM in its fixed point and against a loop, pseudo-pairs by
their keys.
"""

import pytest
import torch
from helpers import noise_pairs

from cibr.losses.cca import centred_moments
from cibr.models import features
from cibr.models.features import prepare
from cibr.train import configure
from cibr_book import unpaired
from cibr_book.corruptions import Corruption
from cibr_book.unpaired import em_moments, with_unpaired


def sides(n=40):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(n, 5, generator=generator) @ torch.randn(5, 5, generator=generator)
    text = image[:, :3] + torch.randn(n, 3, generator=generator)
    return image - image.mean(0), text - text.mean(0)


def test_em_equals_its_equations_written_with_inverses():
    image, text = sides()
    alone_image, alone_text = 2 * sides(30)[0], 0.5 * sides(20)[1]
    _, moments = centred_moments(image, text)
    g_v, g_t = (x.double().T @ x.double() / len(x) for x in (alone_image, alone_text))
    s_v, s_t, s_vt = c_v, c_t, c_vt = moments
    for _ in range(3):
        b = c_vt.T @ torch.linalg.inv(c_v + 3 * c_v.trace() / 5 * torch.eye(5))
        a = c_vt @ torch.linalg.inv(c_t + 1 * c_t.trace() / 3 * torch.eye(3))
        of_texts = a @ g_t @ a.T + c_v - a @ c_vt.T
        of_images = b @ g_v @ b.T + c_t - b @ c_vt
        c_v = (40 * s_v + 30 * g_v + 20 * of_texts) / 90
        c_t = (40 * s_t + 20 * g_t + 30 * of_images) / 90
        c_vt = (40 * s_vt + 30 * g_v @ b.T + 20 * a @ g_t) / 90
    fitted = em_moments(moments, 40, alone_image, alone_text, (3.0, 1.0))
    torch.testing.assert_close([*fitted], [c_v, c_t, c_vt])


@pytest.mark.parametrize("em", [False, True])
def test_unpaired_photos_get_the_nearest_captions_of_others_and_pairs_come_as_often_as_asked(
    build, monkeypatch, tmp_path, em
):
    whole = noise_pairs(24, n_captions=2)
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(unpaired, "load_pairs", lambda name, split: whole)
    config = configure(model="frozen", seed=3)
    half = Corruption(fraction=0.5, redraw=True)
    model = build("frozen")
    kept, _ = with_unpaired(model, config, half, em)
    train, cca = with_unpaired(model, config, half, em, self_training=True, repeats=3)
    of_texts = prepare(model, kept).images[kept.text_to_image()]
    seen = prepare(model, whole).images if em else of_texts
    torch.testing.assert_close(cca.image_mean, seen.mean(0))
    assert train.keys[:36] == kept.keys * 3 and train.captions[:36] == kept.captions * 3
    left = [key for key in whole.keys if key not in kept.keys]
    assert train.keys[36:] == left
    alone = whole.subset(torch.tensor([whole.keys.index(key) for key in left]))
    inputs = prepare(model, alone)
    similarity = cca.images(inputs.images) @ cca.texts(inputs.texts[0]).T
    n_texts = torch.tensor([len(texts) for texts in alone.captions])
    own = torch.eye(len(alone)).repeat_interleave(n_texts, 1) > 0
    assert not em or own.gather(1, similarity.argmax(1, True)).any()  # the rule decides here
    similarity[own] = -2
    assert train.captions[36:] == [[alone.texts()[i]] for i in similarity.argmax(1).tolist()]
    assert train.image(40).tobytes() == whole.image(whole.keys.index(train.keys[40])).tobytes()
