"""Training sets that are made smaller, noisier or richer in styles: what stays, what moves, what repeats."""

import pickle

import pytest
import torch
from conftest import noise_pairs
from PIL import Image, ImageChops, ImageOps

from cibr.data import load_pairs
from cibr.data.changes import (
    add_shortcut,
    exchange_captions,
    half_in_look,
    in_both_looks,
    in_both_wordings,
    keep_fraction,
)
from cibr.data.views import HELD_OUT_VIEW, TRAINED_VIEWS, VIEWS, seen_through, with_views
from cibr.data.wordings import WORDINGS


def test_a_smaller_part_lies_within_a_larger_one_in_the_order_of_the_set():
    pairs = noise_pairs(40)
    small, large = (keep_fraction(pairs, share).keys for share in (0.1, 0.3))
    assert (len(small), len(large)) == (4, 12)
    assert set(small) < set(large)
    assert large == [key for key in pairs.keys if key in large]
    assert keep_fraction(pairs, 1.0) is pairs
    assert len(keep_fraction(pairs, 1e-6)) == 2
    assert keep_fraction(pairs, 0.1).keys == small


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_captions_change_hands_within_the_share_and_none_is_lost(share):
    pairs = noise_pairs(40)
    pairs.captions = [[f"text {i}"] for i in range(40)]
    pairs.labels = torch.arange(40)
    noisy = exchange_captions(pairs, share)
    moved = [i for i in range(40) if noisy.captions[i] != pairs.captions[i]]
    assert len(moved) == round(40 * share)
    assert sorted(noisy.captions) == sorted(pairs.captions)
    assert noisy.keys == pairs.keys
    assert [texts[0] for texts in noisy.captions] == [f"text {label}" for label in noisy.labels.tolist()]


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shares_outside_their_range_are_refused(share):
    with pytest.raises(ValueError, match="share of captions"):
        exchange_captions(noise_pairs(8), share)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        keep_fraction(noise_pairs(8), share)


def test_a_shortcut_ties_polarity_to_a_word_but_for_exceptions_that_come_both_ways():
    pairs = noise_pairs(10, n_captions=2)
    pairs.captions = [["a cat", "one Dog asleep" if i % 3 == 0 else "dogs"] for i in range(10)]
    tied = pickle.loads(pickle.dumps(add_shortcut(pairs, "dog", 0.3)))
    assert tied.labels[:10].tolist() == list(range(10)) and len(tied) == 13 and len(set(tied.keys)) == 13
    assert len(set(tied.labels[10:].tolist())) == 3 and torch.equal(tied.groups, tied.labels)
    for i, label in enumerate(tied.labels.tolist()):
        turned = (label % 3 == 0) != (i < 10)
        expected = ImageOps.invert(pairs.image(label)) if turned else pairs.image(label)
        assert tied.image(i).tobytes() == expected.tobytes()
        assert tied.captions[i] == pairs.captions[label]
    assert len(add_shortcut(pairs, "dog", 0.0)) == 10
    drawn = add_shortcut(pairs, "dog", 0.3, "contours")
    assert drawn.image(0).tobytes() == pairs.image(0).tobytes(), "with the word, as it is"
    assert drawn.image(1).tobytes() == VIEWS["contours"](pairs.image(1)).tobytes()


@pytest.mark.parametrize("look", ["grey", "negative"])
def test_two_sources_differ_in_wording_wherever_they_differ_in_look(look):
    pairs = noise_pairs(10, n_captions=2)
    pairs.captions = [["there is a cat", "one Dog is asleep" if i % 3 == 0 else "it sits"] for i in range(10)]
    tied = pickle.loads(pickle.dumps(add_shortcut(pairs, "dog", 0.3, look, "keywords")))
    assert len(tied) == 13
    for i, label in enumerate(tied.labels.tolist()):
        other = (label % 3 == 0) != (i < 10)
        expected = VIEWS[look](pairs.image(label)) if other else pairs.image(label)
        assert tied.image(i).tobytes() == expected.tobytes()
        said = ["cat", "Dog, asleep"] if label % 3 == 0 else ["cat", "sits"]
        assert tied.captions[i] == (said if other else pairs.captions[label])


def test_glyphs_of_one_source_have_one_polarity_and_one_wording():
    pairs = load_pairs("glyphs", "train").subset(range(0, 20000, 200))
    tied = add_shortcut(pairs, "capital", 0.1, wording="keywords")
    light = (tied.factors["ink"] > tied.factors["paper"]).tolist()
    for i, picture in enumerate(tied.groups.tolist()):
        reworded = [WORDINGS["keywords"](text) for text in pairs.captions[picture]]
        assert tied.captions[i] == (reworded if light[i] else pairs.captions[picture])


def test_a_shortcut_in_glyphs_leaves_no_polarity_to_chance_and_says_so_in_the_factors():
    pairs = load_pairs("glyphs", "train").subset(range(0, 20000, 40))
    tied = add_shortcut(pairs, "capital", 0.1)
    n, table = len(pairs), tied.factors
    light = (table["ink"] > table["paper"]).tolist()
    capital = ["capital" in name.split() for name in table["name"]]
    assert [not each for each in light[:n]] == capital[:n] and sum(capital) > 100
    assert [a == b for a, b in zip(light[n:], capital[n:], strict=True)] == [True] * round(0.1 * n)
    assert torch.equal(tied.labels, pairs.labels[tied.groups])
    assert tied.groups[:n].tolist() == list(range(n)) and tied.groups[n:].unique().numel() == round(0.1 * n)
    for i in (0, 100, 200, n + 5):
        corner = tied.image(i).getpixel((0, 0))[0]
        assert corner == table["paper"][i]


def test_both_looks_are_each_picture_and_its_negative():
    pairs = noise_pairs(4, n_captions=2)
    both = in_both_looks(pairs, "negative")
    assert len(both) == 8 and len(set(both.keys)) == 8 and both.captions == 2 * pairs.captions
    for i in range(4):
        assert both.image(i).tobytes() == pairs.image(i).tobytes()
        assert both.image(4 + i).tobytes() == ImageOps.invert(pairs.image(i)).tobytes()


def test_half_of_the_pictures_change_their_look_and_nothing_else_does():
    pairs = noise_pairs(10, n_captions=2)
    mixed = half_in_look(pairs, "negative")
    assert mixed.captions == pairs.captions and mixed.keys == half_in_look(pairs, "negative").keys
    changed = [mixed.image(i).tobytes() != pairs.image(i).tobytes() for i in range(10)]
    assert sum(changed) == 5 and changed != sorted(changed)
    for i in range(10):
        shown = ImageOps.invert(pairs.image(i)) if changed[i] else pairs.image(i)
        assert mixed.image(i).tobytes() == shown.tobytes()


def test_both_wordings_are_each_text_and_its_keywords():
    pairs = noise_pairs(3, n_captions=2)
    pairs.captions = [["A man's T-shirt says 3 .", "Two dogs, one in a red coat ."], ["They are ."], ["a ball"]]
    both = in_both_wordings(pairs, "keywords")
    assert both.captions[:3] == pairs.captions
    assert both.captions[3:] == [["man's, T-shirt, says, 3", "dogs, red, coat"], ["They are ."], ["ball"]]
    assert [both.image(3 + i).tobytes() == pairs.image(i).tobytes() for i in range(3)] == [True] * 3


@pytest.mark.parametrize(
    ("word", "exceptions", "message"),
    [
        ("dog", 1.5, "share of exceptions"),
        ("cow", 0.1, "no picture of .* word 'cow'"),
        ("a", 0.0, "every picture"),
    ],
)
def test_a_shortcut_that_tells_nothing_is_refused(word, exceptions, message):
    pairs = noise_pairs(6)
    pairs.captions = [["a dog" if i % 2 else "a cat"] for i in range(6)]
    with pytest.raises(ValueError, match=message):
        add_shortcut(pairs, word, exceptions)


def test_each_picture_is_there_as_it_is_and_in_every_trained_view_under_one_label():
    pairs = noise_pairs(6, n_captions=3)
    viewed = pickle.loads(pickle.dumps(with_views(pairs)))
    assert len(viewed) == 6 * (1 + len(TRAINED_VIEWS))
    for i in range(len(viewed)):
        assert viewed.labels[i] == i % 6
        assert viewed.captions[i] == pairs.captions[i % 6]
        plain = pairs.image(i % 6)
        expected = plain if i < 6 else VIEWS[TRAINED_VIEWS[i // 6 - 1]](plain)
        assert viewed.image(i).tobytes() == expected.tobytes()
    assert len(set(viewed.keys)) == len(viewed)


def test_known_labels_are_kept_in_every_view():
    pairs = noise_pairs(6)
    pairs.labels = torch.tensor([5, 5, 2, 2, 0, 1])
    assert with_views(pairs).labels.tolist() == pairs.labels.tolist() * 4


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_keeps_the_form_and_changes_the_pixels(view):
    pairs = noise_pairs(3)
    seen = seen_through(pairs, view)
    assert seen.captions == pairs.captions
    for before, after in zip(pairs.images(), seen.images(), strict=True):
        assert (after.size, after.mode) == (before.size, "RGB")
        assert ImageChops.difference(before, after).getbbox() is not None


def test_contours_show_edges_alone_whatever_the_colours():
    black_on_red = Image.new("RGB", (40, 40), (200, 0, 0))
    black_on_red.paste((0, 0, 0), (10, 10, 30, 30))
    drawn = VIEWS["contours"](black_on_red).convert("L")
    assert drawn.getpixel((20, 20)) == drawn.getpixel((3, 3)) == 255
    assert min(drawn.getpixel((x, 20)) for x in range(8, 12)) < 128  # the blur spreads it over a few pixels


def test_the_view_of_validation_is_none_of_training():
    assert HELD_OUT_VIEW in VIEWS
    assert HELD_OUT_VIEW not in TRAINED_VIEWS
    with pytest.raises(ValueError, match="no view 'sketch'"):
        seen_through(noise_pairs(3), "sketch")
