"""Corruptions: what stays, what moves, and that the same images are taken as ever."""

import pytest
import torch
from helpers import picture

from cibr.data import Pairs
from cibr_book.experiments import corruptions
from cibr_book.experiments.corruptions import STYLES, Corruption, corrupt


def twenty() -> Pairs:
    """Pairs of which every third shows a dog."""
    captions = [[f"a {'Dog' if i % 3 == 0 else 'dogged cat'} {i}"] for i in range(20)]
    return Pairs("noise", "train", captions, [f"k{i}" for i in range(20)], picture)


def pixels(pairs: Pairs) -> list[bytes]:
    return [image.tobytes() for image in pairs.images()]


def numbers(pairs: Pairs) -> list[int]:
    return [int(texts[0].split()[-1]) for texts in pairs.captions]


def test_a_subset_and_its_shuffled_captions_are_those_of_the_committed_rows():
    pairs = corrupt(twenty(), Corruption(0.5, 0.4))
    # Recorded from the code that made the committed tables: their rows can be made again.
    kept = [3, 4, 5, 6, 7, 9, 13, 14, 17, 19]
    assert pairs.keys == [f"k{i}" for i in kept]
    assert numbers(pairs) == [3, 13, 4, 6, 7, 5, 9, 14, 17, 19]
    assert pixels(pairs) == [picture(i).tobytes() for i in kept]


def test_what_is_redrawn_is_another_for_each_seed_and_the_rest_is_left_out():
    changes = Corruption(0.5, shuffled_captions=0.5, redraw=True)
    first, second, again = (corrupt(twenty(), changes, seed) for seed in (0, 1, 0))
    assert first.keys == again.keys and numbers(first) == numbers(again)
    assert set(first.keys) != set(second.keys)
    shuffled = Corruption(shuffled_captions=0.5, redraw=True)
    orders = [numbers(corrupt(twenty(), shuffled, seed)) for seed in (0, 1)]
    moved = [{i for i, number in enumerate(order) if i != number} for order in orders]
    assert moved[0] != moved[1] and len(moved[0]) == len(moved[1]) == 10
    fixed = Corruption(0.5, shuffled_captions=0.5)
    first, second = (corrupt(twenty(), fixed, seed) for seed in (0, 1))
    assert first.keys == second.keys and first.captions == second.captions


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_labels_move_with_their_captions(share):
    pairs = twenty()
    pairs.labels = torch.arange(20)
    shuffled = corrupt(pairs, Corruption(shuffled_captions=share))
    assert numbers(shuffled) == shuffled.labels.tolist()
    assert sorted(numbers(shuffled)) == list(range(20))
    assert (shuffled.labels != torch.arange(20)).sum() == round(20 * share)


def test_both_styles_are_each_image_as_it_is_and_changed():
    both = corruptions.in_both_styles(twenty(), "tint")
    assert both.captions == 2 * twenty().captions
    assert both.keys == [*twenty().keys, *(f"{key}/tint" for key in twenty().keys)]
    tinted = [STYLES["tint"](image).tobytes() for image in twenty().images()]
    assert pixels(both) == pixels(twenty()) + tinted
    assert pixels(both.subset([25, 5])) == [tinted[5], pixels(twenty())[5]]
