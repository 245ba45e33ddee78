"""What encoders read: images in memory or decoded when asked for, and cached features of frozen
towers.
"""

from dataclasses import replace

import pytest
import torch
from helpers import TEXTS, noise_pairs, picture

from cibr.models import DualEncoder, features
from cibr.models.features import embed_pairs, prepare

PAIRS = noise_pairs(23, n_captions=3)
PAIRS.captions[0] = ["a red cat beside a big house"]  # longer than the others
each_kind = pytest.mark.parametrize("kind", ["tiny", "frozen", "frozen dual", "hub"])
# From Python 3.12 on, of every fork beside threads; the workers only decode images.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A folder of the test's own for features."""
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path)
    return tmp_path / "features"


@forks
def test_a_batch_is_the_rows_asked_for_whether_or_not_images_fit_in_memory(build, monkeypatch):
    model = build("tiny")
    monkeypatch.setattr(features, "_IN_MEMORY", 23 * 3 * 32 * 32)  # bytes of all images
    in_memory = prepare(model, PAIRS)
    monkeypatch.setattr(features, "_IN_MEMORY", 23 * 3 * 32 * 32 - 1)
    monkeypatch.setattr(features.os, "cpu_count", lambda: 1)
    lazily = prepare(model, PAIRS)
    assert (in_memory.images is None, lazily.images is None) == (False, True)
    ids, mask = model.tokenize([PAIRS.texts()[i] for i in (4, 0, 40)])
    labels = PAIRS.match_labels()[PAIRS.text_to_image()][[4, 0, 40]]
    wanted = model.preprocess([PAIRS.image(i) for i in (3, 1, 22)]), ids, mask, labels
    rows = [(torch.tensor([3, 1, 22]), torch.tensor([4, 0, 40]))]
    rows += [(torch.tensor([7]), torch.tensor([9]))]
    for prepared, n_workers in ((in_memory, 0), (lazily, 1)):
        loader = prepared.loader(rows)
        batch, last = loader
        assert all(map(torch.equal, (batch.images, *batch.texts, batch.labels), wanted))
        assert (len(last.images), loader.num_workers) == (1, n_workers)
    assert all(map(torch.equal, embed_pairs(model, lazily), embed_pairs(model, in_memory)))
    sizes = []
    monkeypatch.setattr(features, "_AT_ONCE", 4)  # images at full size are held a few at a time
    lazily.preprocess = lambda images: sizes.append(len(images)) or model.preprocess(images)
    rows = torch.arange(23)
    assert torch.equal(lazily[rows, rows].images, in_memory.images)
    assert max(sizes) == 4 and sum(sizes) == 23


def test_features_are_computed_again_if_anything_has_changed_that_they_depend_on(build, store):
    model = build("frozen")

    def computed(pairs=PAIRS, **options):
        before = set(store.glob("*"))
        prepare(model, pairs, **options)
        return [path.name.split("-")[2] for path in sorted(set(store.iterdir()) - before)]

    assert computed() == ["images", "texts"]
    assert computed() == computed(replace(PAIRS, captions=PAIRS.captions[::-1])) == []
    assert computed(truncate=True) == computed(texts=TEXTS[:4]) == ["texts"]
    assert computed(replace(PAIRS, load=lambda i: picture(i + 1))) == ["images"]
    assert computed(replace(PAIRS, load=lambda i: picture(i + (i == 7)))) == ["images"]
    assert computed(replace(PAIRS, keys=TEXTS[:23])) == []
    assert computed(replace(PAIRS, split="test")) == ["images", "texts"]
    model.backbone.towers.image_tower.layernorm.weight.data.mul_(2)
    assert computed() == ["images"]
    model.backbone.towers.text_tower.config.layer_norm_eps = 1.0
    assert computed() == ["texts"]
    object.__setattr__(model.processor, "image_mean", [0.1, 0.2, 0.3])
    assert computed() == ["images"]
    model.tokenizer.add_tokens("zebra")
    assert computed() == ["texts"]


def test_stored_features_are_read_damaged_ones_computed_again_and_an_unwritable_store_does_no_harm(
    build, store, tmp_path, monkeypatch
):
    model = build("frozen")
    whole = prepare(model, PAIRS)
    with monkeypatch.context() as patch:
        patch.setattr(model, "encode_images", None)
        patch.setattr(model, "encode_texts", None)
        stored = prepare(model, PAIRS)
    assert torch.equal(stored.images, whole.images)
    assert torch.equal(stored.texts[0], whole.texts[0])
    for file in store.iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(prepare(model, PAIRS).images, whole.images)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "file")
    assert torch.equal(prepare(model, PAIRS).images, whole.images)


@each_kind
def test_embeddings_are_those_of_the_model_in_the_order_of_the_pairs(build, monkeypatch, kind):
    model = build(kind).train()
    read, real = [], model.tokenize
    monkeypatch.setattr(
        model, "tokenize", lambda texts, cut: read.extend(texts) or real(texts, cut)
    )
    before = torch.get_rng_state()
    images, texts = embed_pairs(model, prepare(model, PAIRS), batch_size=7)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert sorted(read) == sorted(set(PAIRS.texts()) if model.kind == "frozen" else PAIRS.texts())
    assert torch.allclose(images, model.embed_images(PAIRS.images()), atol=1e-5)
    assert torch.allclose(texts, model.embed_texts(PAIRS.texts()), atol=1e-5)
    of_prompts = prepare(model, PAIRS, texts=TEXTS[:4])
    assert of_prompts.labels.tolist() == [0, 1, 2, 3]
    assert torch.allclose(
        embed_pairs(model, of_prompts)[1], model.embed_texts(TEXTS[:4]), atol=1e-5
    )


def test_a_frozen_model_that_was_saved_reads_the_features_of_the_one_from_the_hub(
    build, store, tmp_path
):
    model = build("frozen")
    prepare(model, PAIRS)
    before = set(store.iterdir())
    prepare(DualEncoder.from_pretrained(model.save_pretrained(tmp_path / "saved")), PAIRS)
    assert set(store.iterdir()) == before
