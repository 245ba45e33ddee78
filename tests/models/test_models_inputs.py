"""What encoders read: images in memory or decoded when asked for, and cached features of frozen
towers.
"""

import warnings
from collections import Counter
from dataclasses import replace

import pytest
import torch
from helpers import TEXTS, noise_pairs, picture

from cibr.data import Features
from cibr.models import FrozenTowers, frozen_features
from cibr.models import inputs as model_inputs
from cibr.models.inputs import embed_pairs, prepare

PAIRS = noise_pairs(23, n_captions=3)
PAIRS.captions[0] = ["a red cat beside a big house"]  # longer than the others
KINDS = ["tiny", "names", "staged", "frozen", "frozen dual", "hub"]
each_kind = pytest.mark.parametrize("kind", KINDS)
# From Python 3.12 on, of every fork beside threads; the workers only decode images.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@forks
def test_a_batch_is_the_rows_asked_for_whether_or_not_images_fit_in_memory(build, monkeypatch):
    model = build("tiny")
    n_bytes = 4 * 23 * 3 * 32 * 32  # of all images
    monkeypatch.setattr(model_inputs, "_MOST_IN_MEMORY", n_bytes)
    in_memory = prepare(model, PAIRS)
    monkeypatch.setattr(model_inputs, "_MOST_IN_MEMORY", n_bytes - 1)
    monkeypatch.setattr(model_inputs.os, "cpu_count", lambda: 1)
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


@pytest.fixture
def computed(monkeypatch):
    """Prepares pairs; returns how many images and texts the towers saw."""
    seen = Counter()

    def counted(side):
        name = f"{side}_pooled"
        pool = getattr(FrozenTowers, name)

        def pool_and_count(towers, items, *mask):
            seen[side] += len(items)
            return pool(towers, items, *mask)

        monkeypatch.setattr(FrozenTowers, name, pool_and_count)

    counted("image")
    counted("text")

    def computed(model, pairs=PAIRS, **options):
        seen.clear()
        prepare(model, pairs, **options)
        return seen["image"], seen["text"]

    return computed


N_TEXTS = len(set(PAIRS.texts()))


def test_towers_see_an_image_or_a_text_once(build, computed):
    model = build("frozen")
    first = PAIRS.subset(range(20))
    n_texts = len(set(first.texts()))
    assert computed(model, first) == (20, n_texts)
    assert computed(model) == (3, N_TEXTS - n_texts)
    assert computed(model, PAIRS.subset([5, 3, 5])) == (0, 0)
    assert computed(model, texts=["unseen", PAIRS.texts()[0], "unseen"]) == (0, 1)


def test_names_of_a_set_and_of_its_images_do_not_matter(build, computed):
    model = build("frozen")
    computed(model)
    renamed = replace(PAIRS, name="other", split="test", keys=TEXTS[:23])
    assert computed(model, renamed) == (0, 0)


def other_weights(model):
    model.towers.loaded.image_tower.layernorm.weight.data.mul_(2)


def other_settings(model):
    model.towers.loaded.text_tower.config.layer_norm_eps = 1.0


def other_pixels(model):
    model.towers.processor.image_mean = [0.1, 0.2, 0.3]


def other_tokens(model):
    model.tokenizer.add_tokens("zebra")


def other_context(model):
    model.tokenizer.model_max_length = 5


CHANGES = [  # of what makes features, and how many images and texts are computed again
    (other_weights, (23, 0)),
    (other_settings, (0, N_TEXTS)),
    (other_pixels, (23, 0)),
    (other_tokens, (0, N_TEXTS)),
    pytest.param(
        *(other_context, (0, N_TEXTS)), marks=pytest.mark.filterwarnings("ignore:.*are cut to")
    ),
]


@pytest.mark.parametrize(("change", "n_computed"), CHANGES)
def test_features_are_computed_again_if_what_makes_them_changed(
    build, computed, change, n_computed
):
    model = build("frozen")
    computed(model)
    change(model)
    assert computed(model) == n_computed


def test_features_of_changed_images_and_of_other_towers_are_computed(build, computed):
    computed(build("frozen"))
    changed = replace(PAIRS, load=lambda i: picture(i + 100 * (i == 7)))
    assert computed(build("frozen"), changed) == (1, 0)
    assert computed(build("frozen dual")) == (23, N_TEXTS)


@pytest.mark.parametrize("is_same", [True, False])
def test_features_that_pairs_bring_along_are_used_for_their_towers_alone(build, computed, is_same):
    model = build("frozen")
    image_tower, text_tower = model.towers.names
    strings = [*dict.fromkeys(PAIRS.texts())][::-1]
    features = Features(
        images=torch.randn(23, model.dim_image_pooled),
        texts=torch.randn(len(strings), model.dim_text_pooled),
        strings=strings,
        towers=(image_tower, text_tower if is_same else "some/other"),
    )
    pairs = replace(PAIRS, features=features)
    assert computed(model, pairs) == ((0, 0) if is_same else (23, N_TEXTS))
    inputs = prepare(model, pairs)
    assert torch.equal(inputs.images, features.images) == is_same
    if is_same:
        rows = [strings.index(text) for text in PAIRS.texts()]
        assert torch.equal(inputs.texts[0], features.texts[rows])


@each_kind
def test_long_texts_are_cut_with_a_warning_that_counts_them(build, kind):
    model = build(kind)
    long = [["every " * 90], ["a cat", "big " * 90], ["every " * 90]]
    pairs = replace(PAIRS.subset(range(3)), captions=long)
    with pytest.warns(UserWarning, match=r"3 of 4 texts of noise-train are cut to the \d\d"):
        inputs = prepare(model, pairs)
    expected = model.embed_texts(pairs.texts())
    assert torch.allclose(embed_pairs(model, inputs)[1], expected, atol=1e-5)


@each_kind
def test_embeddings_are_those_of_the_model_in_the_order_of_the_pairs(build, kind):
    model = build(kind).train()
    before = torch.get_rng_state()
    images, texts = embed_pairs(model, prepare(model, PAIRS), batch_size=7)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert torch.allclose(images, model.embed_images(PAIRS.images()), atol=1e-5)
    assert torch.allclose(texts, model.embed_texts(PAIRS.texts()), atol=1e-5)
    of_prompts = prepare(model, PAIRS, texts=TEXTS[:4])
    assert of_prompts.labels.tolist() == [0, 1, 2, 3]
    assert torch.allclose(
        embed_pairs(model, of_prompts)[1], model.embed_texts(TEXTS[:4]), atol=1e-5
    )


def test_features_are_made_where_no_cache_can_be_written(build, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(frozen_features, "cache_folder", lambda: tmp_path / "file")
    with pytest.warns(UserWarning, match="cannot be written .* it will be computed again"):
        assert len(prepare(build("frozen"), PAIRS).images) == len(PAIRS)


def cut_to_context(model, text):
    """The number of warnings that a text is cut."""
    pairs = replace(PAIRS.subset([0]), captions=[[text]])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(model, pairs)
    return sum("are cut to the" in str(warning.message) for warning in caught)


def test_a_text_that_just_fills_the_context_is_not_cut(build):
    model = build("tiny")
    text = "\x01" * 62  # a token each, after that of a space and before that of the end
    assert len(model.tokenizer(text)["input_ids"]) == model.context == 64
    assert (cut_to_context(model, text), cut_to_context(model, text + "\x01")) == (0, 1)


def test_a_text_of_few_characters_and_many_tokens_is_cut_with_a_warning(build):
    assert cut_to_context(build("tiny"), "漢" * 30) == 1  # three bytes, and tokens, each


def test_features_of_images_that_pairs_bring_along_are_used_with_prompts(build, computed):
    model = build("frozen")
    given = Features(
        images=torch.randn(23, model.dim_image_pooled),
        texts=torch.randn(1, model.dim_text_pooled),
        strings=["a cat"],
        towers=model.towers.names,
    )
    pairs = replace(PAIRS, features=given)
    assert computed(model, pairs, texts=["a cat", "unseen"]) == (0, 2)


def test_features_of_another_precision_are_computed(build, computed):
    computed(build("frozen"))
    assert computed(build("frozen").double()) == (23, N_TEXTS)


def test_features_are_kept_file_by_file(build, computed, monkeypatch):
    monkeypatch.setattr(frozen_features, "_ITEMS_PER_FILE", 5)
    computed(build("frozen"))
    assert computed(build("frozen")) == (0, 0)
