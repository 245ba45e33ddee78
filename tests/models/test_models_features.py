"""What encoders read: images in memory or decoded when asked for, and cached features of frozen
towers.
"""

import hashlib
import shutil
from functools import partial

import pytest
import torch
from helpers import TEXTS, noise_pairs

from cibr.models import DualEncoder, features
from cibr.models.features import digest_model, embed_pairs, pixel_digests, prepare

PAIRS = noise_pairs(23, n_captions=3)
PAIRS.captions[0] = ["a red cat beside a big house"]  # longer than the others
each_kind = pytest.mark.parametrize("kind", ["tiny", "frozen", "clip"])
# From Python 3.12 on, of every fork beside threads; the workers only decode images.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """A folder of the test's own for features, in parts of five rows."""
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(features, "_PART", 5)
    return tmp_path / "features"


def count_pooling(monkeypatch, model, stop_after=None):
    """Counts the batches that go through a frozen model's towers; raises once `stop_after` did."""
    calls = []

    def pool(real, *args):
        if len(calls) == stop_after:
            raise KeyboardInterrupt
        calls.append(real.__name__)
        return real(*args)

    for name in ("image_pooled", "text_pooled"):
        monkeypatch.setattr(model.backbone, name, partial(pool, getattr(model.backbone, name)))
    return calls


@forks
def test_a_batch_is_the_rows_that_were_asked_for_whether_or_not_images_fit_in_memory(
    build, monkeypatch
):
    model = build("tiny")
    in_memory = prepare(model, PAIRS)
    embedded = embed_pairs(model, in_memory, batch_size=10)
    size = 23 * 3 * 32 * 32  # bytes of all images
    monkeypatch.setattr(features, "IN_MEMORY", size)
    assert prepare(model, PAIRS).images is not None
    monkeypatch.setattr(features, "IN_MEMORY", size - 1)
    lazily = prepare(model, PAIRS)
    assert lazily.images is None
    ids, mask = model.tokenize([PAIRS.texts()[i] for i in (4, 0, 40)])
    labels = PAIRS.match_labels()[PAIRS.text_to_image()][[4, 0, 40]]
    wanted = model.preprocess([PAIRS.image(i) for i in (3, 1, 22)]), ids, mask, labels
    rows = [(torch.tensor([3, 1, 22]), torch.tensor([4, 0, 40]))]
    rows += [(torch.tensor([7]), torch.tensor([9]))]
    for prepared in (in_memory, lazily):
        batch, last = prepared.loader(rows)
        assert all(map(torch.equal, (batch.images, *batch.texts, batch.labels), wanted))
        assert len(last.images) == 1
    assert (in_memory.loader(rows).num_workers, lazily.loader(rows, 1).num_workers) == (0, 1)
    assert all(map(torch.equal, embed_pairs(model, lazily, batch_size=10), embedded))
    sizes = []
    monkeypatch.setattr(features, "_AT_ONCE", 4)  # images at full size are held a few at a time
    lazily.preprocess = lambda images: sizes.append(len(images)) or model.preprocess(images)
    rows = torch.arange(23)
    assert torch.equal(lazily[rows, rows].images, in_memory.images)
    assert max(sizes) == 4 and sum(sizes) == 23


@forks
def test_a_crop_is_that_of_torchvision_and_decided_by_its_seed_alone(build):
    from torchvision.transforms import InterpolationMode, RandomResizedCrop

    model = build("tiny")
    inputs = prepare(model, PAIRS, crop_scale=0.5)
    crop = RandomResizedCrop(32, (0.5, 1.0), interpolation=InterpolationMode.BICUBIC)
    rows, seeds = torch.tensor([3, 1, 3]), torch.tensor([7, 2**61, 8])
    state = torch.get_rng_state()
    images = inputs[rows, rows, seeds].images
    assert torch.equal(torch.get_rng_state(), state) and inputs.images is None
    for image, i, seed in zip(images, rows.tolist(), seeds.tolist(), strict=True):
        torch.manual_seed(seed)
        assert torch.equal(image, model.preprocess([crop(PAIRS.image(i))])[0])
    assert not torch.equal(images[0], images[2])
    turned = [(rows.flip(0), rows, seeds.flip(0)), (rows[:1], rows[:1], seeds[:1])]
    for n_workers in (0, 2):
        batches = [batch.images for batch in inputs.loader(iter(turned), n_workers)]
        assert torch.equal(batches[0], images.flip(0)) and torch.equal(batches[1], images[:1])


def test_frozen_features_are_those_of_the_towers_in_the_order_of_the_pairs_each_text_once(
    build, monkeypatch
):
    model = build("frozen").train()
    pixels = model.normalise(model.preprocess(list(PAIRS.images())))
    images = model.backbone.image_pooled(pixels)
    tokens = [model.tokenize([text]) for text in PAIRS.texts()]
    texts = torch.cat([model.backbone.text_pooled(*part) for part in tokens])
    read, real = [], model.tokenize
    monkeypatch.setattr(
        model, "tokenize", lambda texts, cut: read.extend(texts) or real(texts, cut)
    )
    prepared = prepare(model, PAIRS)
    assert model.training and sorted(read) == sorted(set(PAIRS.texts()))
    assert torch.allclose(prepared.images, images, atol=1e-5)
    assert torch.allclose(prepared.texts[0], texts, atol=1e-5)


def test_a_cache_folder_is_named_after_all_that_its_features_depend_on(build, store):
    model = build("frozen")
    prepare(model, PAIRS, truncate=True)
    digests = digest_model(model)
    shown = ("noise", "train", PAIRS.keys, pixel_digests(PAIRS))
    texts = sorted(dict.fromkeys(PAIRS.texts()), key=len), True
    for side, digest, items in (("images", digests.image, shown), ("texts", digests.text, texts)):
        digest = hashlib.sha256(digest + repr(items).encode()).hexdigest()
        assert (store / f"noise-train-{side}-{digest[:16]}").is_dir()
    shas = [hashlib.sha256(PAIRS.image(i).tobytes()).hexdigest() for i in (0, 11, 22)]
    assert pixel_digests(PAIRS, 3) == shas and len(pixel_digests(PAIRS)) == 23
    model.backbone.image_tower.layernorm.weight.data.mul_(2)
    other = digest_model(model)
    assert other.image != digests.image and other.text == digests.text
    model.backbone.text_tower.config.layer_norm_eps = 1.0
    assert digest_model(model).text != digests.text
    assert digest_model(build("tiny", dropout=0.1)).model != digest_model(build("tiny")).model


def test_a_killed_extraction_resumes_and_a_second_run_reads_all(build, store, monkeypatch):
    model = build("frozen")
    whole = prepare(model, PAIRS)
    n_parts = len(list(store.glob("*/*.safetensors")))
    shutil.rmtree(store)
    for stop_after in (3, 4):
        with monkeypatch.context() as patch:
            count_pooling(patch, model, stop_after)
            with pytest.raises(KeyboardInterrupt):
                prepare(model, PAIRS)
    calls = count_pooling(monkeypatch, model)
    for expected in (n_parts - 7, n_parts - 7):
        resumed = prepare(model, PAIRS)
        assert len(calls) == expected
        assert torch.equal(resumed.images, whole.images)
        assert torch.equal(resumed.texts[0], whole.texts[0])


def test_a_damaged_part_is_computed_again_and_a_cache_that_cannot_be_written_only_costs_time(
    build, store, tmp_path, monkeypatch
):
    model = build("frozen")
    whole = prepare(model, PAIRS)
    parts = sorted(store.glob("*-images-*/*.safetensors"))
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    shutil.copy(parts[-1], parts[0])  # readable, but of another length
    calls = count_pooling(monkeypatch, model)
    assert torch.equal(prepare(model, PAIRS).images, whole.images)
    assert calls == ["image_pooled"] * 2
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(features, "cache_folder", lambda: tmp_path / "file")
    assert torch.equal(prepare(model, PAIRS).images, whole.images)


@each_kind
def test_embeddings_are_those_of_the_model_with_the_texts_that_were_asked_for(build, kind):
    model = build(kind).train()
    prompts = TEXTS[:4]
    of_prompts = prepare(model, PAIRS, texts=prompts, digests=digest_model(model))
    before = torch.get_rng_state()
    images, texts = embed_pairs(model, of_prompts, batch_size=7)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert torch.allclose(images, model.embed_images(list(PAIRS.images())), atol=1e-5)
    assert torch.allclose(texts, model.embed_texts(prompts), atol=1e-5)
    assert of_prompts.labels.tolist() == [0, 1, 2, 3]
    assert len(embed_pairs(model, prepare(model, PAIRS))[1]) == len(PAIRS.texts())


@each_kind
def test_a_saved_model_has_the_digests_of_the_one_in_memory_and_another_has_not(
    build, tmp_path, kind
):
    model = build(kind)
    first = digest_model(model)
    assert digest_model(DualEncoder.from_pretrained(model.save_pretrained(tmp_path))) == first
    next(model.backbone.image_head.parameters()).data.neg_()
    changed = digest_model(model)
    assert changed.model != first.model and changed[:2] == first[:2]
    object.__setattr__(model.processor, "image_mean", [0.1, 0.2, 0.3])
    assert digest_model(model).image != first.image and digest_model(model).text == first.text
    model.tokenizer.add_tokens("zebra")
    assert digest_model(model).text != first.text
