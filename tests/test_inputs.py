"""What the encoders read: bytes in memory or decoded when asked for, and frozen features that are kept."""

import shutil

import pytest
import torch
from conftest import TEXTS, noise_pairs

from cibr import inputs
from cibr.data import Pairs
from cibr.data.labels import text_labels
from cibr.inputs import digest_model, embed_pairs, prepare
from cibr.models import DualEncoder

PAIRS = noise_pairs(23, n_captions=3)


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder of the test's own for features, in parts of five rows."""
    monkeypatch.setattr(inputs, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(inputs, "PART", 5)
    return tmp_path / "features"


def count_pooling(monkeypatch, model, stop_after=None):
    """Counts what goes through a frozen model's towers; raises once `stop_after` batches did."""
    calls = []

    def counted(name):
        real = getattr(model.backbone, name)

        def pool(*args):
            if len(calls) == stop_after:
                raise KeyboardInterrupt
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(model.backbone, name, pool)

    counted("image_base")
    counted("text_pooled")
    return calls


def batches(prepared):
    rows = [(torch.tensor([3, 1, 22]), torch.tensor([4, 0, 40])), (torch.tensor([7]), torch.tensor([9]))]
    return list(prepared.loader(rows))


def test_a_batch_is_the_rows_that_were_asked_for(build):
    model = build("tiny")
    batch = batches(prepare(model, PAIRS))[0]
    assert torch.equal(batch.images, model.preprocess([PAIRS.image(i) for i in (3, 1, 22)]))
    ids, mask = model.tokenize([PAIRS.texts()[i] for i in (4, 0, 40)])
    assert torch.equal(batch.texts[0], ids) and torch.equal(batch.texts[1], mask)
    assert batch.images.dtype == torch.uint8


# From Python 3.12 on, of every fork beside threads; the workers only decode pictures.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_pictures_that_do_not_fit_in_memory_give_the_same_batches(build, monkeypatch):
    model = build("tiny")
    in_memory = prepare(model, PAIRS)
    monkeypatch.setattr(inputs, "IN_MEMORY", 0)
    lazily = prepare(model, PAIRS)
    assert lazily.images is None and in_memory.images is not None
    for lazy, held in zip(batches(lazily), batches(in_memory), strict=True):
        assert torch.equal(lazy.images, held.images) and torch.equal(lazy.labels, held.labels)
        assert all(torch.equal(a, b) for a, b in zip(lazy.texts, held.texts, strict=True))


def test_few_pictures_are_held_at_full_size_at_a_time(build, monkeypatch):
    model, most = build("tiny"), []
    monkeypatch.setattr(inputs, "AT_ONCE", 4)
    real = model.preprocess
    monkeypatch.setattr(model, "preprocess", lambda images: most.append(len(images)) or real(images))
    assert prepare(model, PAIRS).images.shape == (23, 3, 32, 32)
    assert max(most) == 4 and sum(most) == 23


def test_frozen_features_are_those_of_the_towers_in_the_order_of_the_pairs(build, store):
    model = build("frozen").train()
    prepared = prepare(model, PAIRS)
    assert model.training
    with torch.no_grad():
        pixels = model.normalise(model.preprocess(list(PAIRS.images())))
        images = model.backbone.image_pooled(pixels)
        texts = torch.cat([model.backbone.text_pooled(*model.tokenize([text])) for text in PAIRS.texts()])
    assert torch.allclose(prepared.images, images, atol=1e-5)
    assert torch.allclose(prepared.texts[0], texts, atol=1e-5)


def test_a_text_that_comes_often_is_encoded_once(build, store, monkeypatch):
    model, pairs = build("frozen"), noise_pairs(10)
    often = pairs.subset([3, 1, 3, 1, 7, 3])
    expected = [prepare(model, pairs.subset([i])).texts[0][0] for i in (3, 1, 3, 1, 7, 3)]
    n_encoded = []
    pool = model.backbone.text_pooled
    monkeypatch.setattr(
        model.backbone, "text_pooled", lambda ids, mask: n_encoded.append(len(ids)) or pool(ids, mask)
    )
    torch.testing.assert_close(prepare(model, often).texts[0], torch.stack(expected))
    assert sum(n_encoded) == len({pairs.captions[i][0] for i in (3, 1, 7)})


def test_a_second_run_reads_the_features(build, store, monkeypatch):
    model = build("frozen")
    first = prepare(model, PAIRS)
    calls = count_pooling(monkeypatch, model)
    second = prepare(model, PAIRS)
    assert not calls
    assert torch.equal(first.images, second.images) and torch.equal(first.texts[0], second.texts[0])


def test_a_killed_extraction_goes_on_where_it_stopped(build, store, monkeypatch):
    model = build("frozen")
    whole = prepare(model, PAIRS)
    shutil.rmtree(store)
    n_parts = -(-len(PAIRS) // 5) + -(-len(set(PAIRS.texts())) // 5)
    for stop_after in (3, 4):
        with monkeypatch.context() as patch:
            calls = count_pooling(patch, model, stop_after)
            with pytest.raises(KeyboardInterrupt):
                prepare(model, PAIRS)
    calls = count_pooling(monkeypatch, model)
    resumed = prepare(model, PAIRS)
    assert len(calls) == n_parts - 7
    assert torch.equal(resumed.images, whole.images) and torch.equal(resumed.texts[0], whole.texts[0])


def test_a_damaged_part_is_computed_again(build, store, monkeypatch):
    model = build("frozen")
    whole = prepare(model, PAIRS)
    parts = sorted(store.glob("*-images-*/*.safetensors"))
    parts[1].write_bytes(parts[1].read_bytes()[:100])
    shutil.copy(parts[-1], parts[0])  # readable, but of another length
    calls = count_pooling(monkeypatch, model)
    assert torch.equal(prepare(model, PAIRS).images, whole.images)
    assert calls == ["image_base"] * 2


def test_features_are_not_taken_for_those_of_other_towers_pictures_or_texts(build, store, monkeypatch):
    model = build("frozen")
    prepare(model, PAIRS)
    calls = count_pooling(monkeypatch, model)
    prepare(model, noise_pairs(23, n_captions=2))
    assert calls and set(calls) == {"text_pooled"}
    calls.clear()
    prepare(model, PAIRS.subset(range(23)[::-1]))
    assert {"image_base", "text_pooled"} == set(calls)
    calls.clear()
    model.backbone.image_tower.layernorm.weight.data.mul_(2)
    prepare(model, PAIRS)
    assert calls and set(calls) == {"image_base"}


def test_features_of_cut_texts_do_not_hide_that_texts_are_too_long(build, store):
    model = build("frozen")
    long = Pairs("noise", "train", [["every " * 80]] * 2, ["a", "b"], PAIRS.load)
    assert len(prepare(model, long, truncate=True).texts[0]) == 2
    with pytest.raises(ValueError, match="a text has .* tokens and the model reads 40"):
        prepare(model, long)


def test_a_cache_that_cannot_be_written_only_costs_the_time(build, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(inputs, "data_folder", lambda: tmp_path / "file")
    assert len(prepare(build("frozen"), PAIRS).images) == 23


@pytest.mark.parametrize("kind", ["tiny", "frozen", "clip"])
def test_embeddings_are_those_of_the_model_with_the_texts_that_were_asked_for(build, store, kind):
    model, prompts = build(kind).train(), TEXTS[:4]
    inputs_of_prompts = prepare(model, PAIRS, texts=prompts, digests=digest_model(model))
    before = torch.get_rng_state()
    images, texts = embed_pairs(model, inputs_of_prompts, batch_size=7)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert torch.allclose(images, model.embed_images(list(PAIRS.images())), atol=1e-5)
    assert torch.allclose(texts, model.embed_texts(prompts), atol=1e-5)
    assert inputs_of_prompts.labels.tolist() == [0, 1, 2, 3]
    assert len(embed_pairs(model, prepare(model, PAIRS))[1]) == len(PAIRS.texts())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_pictures_that_do_not_fit_in_memory_are_embedded_alike(build, monkeypatch):
    model = build("tiny")
    expected = embed_pairs(model, prepare(model, PAIRS), batch_size=10)
    monkeypatch.setattr(inputs, "IN_MEMORY", 0)
    found = embed_pairs(model, prepare(model, PAIRS), batch_size=10)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@pytest.mark.parametrize("kind", ["tiny", "frozen", "clip"])
def test_a_saved_model_has_the_digests_of_the_one_in_memory_and_another_has_not(build, tmp_path, kind):
    model = build(kind)
    first = digest_model(model)
    assert digest_model(DualEncoder.from_pretrained(model.save_pretrained(tmp_path))) == first
    head = model.backbone.image_head
    next(head.parameters()).data.neg_()
    changed = digest_model(model)
    assert changed.model != first.model and changed[:2] == first[:2]
    model.processor.image_mean = [0.1, 0.2, 0.3]
    assert digest_model(model).image != first.image and digest_model(model).text == first.text


def test_equal_captions_get_equal_labels_unless_the_pairs_have_their_own():
    labels, texts = text_labels(PAIRS), PAIRS.texts()
    assert len(set(texts)) < len(texts)
    assert [[a == b for b in labels.tolist()] for a in labels.tolist()] == [[a == b for b in texts] for a in texts]
    own = Pairs("x", "train", [TEXTS[:2], TEXTS[2:3]], ["a", "b"], PAIRS.load, labels=torch.tensor([7, 3]))
    assert text_labels(own).tolist() == [7, 7, 3]


def test_captions_of_one_group_get_one_label_with_those_that_equal_them():
    captions = [["a", "b"], ["c"], ["a"], ["d", "e"], ["f"]]
    pairs = Pairs("x", "train", captions, list("vwxyz"), PAIRS.load, groups=torch.tensor([4, 4, 1, 2, 3]))
    a, b, c, again, d, e, f = text_labels(pairs).tolist()
    assert a == b == c == again and len({a, d, e, f}) == 4  # captions of a picture that stands alone stay apart
