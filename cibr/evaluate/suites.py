"""Suites of benchmarks, as data: which sets a model is measured on, and on which split.

Which seven zero-shot sets Ji et al. (2025) measured on is not public; those of `paper` are ours. `mini` holds
subsets in folders of `$CIBR_DATA`, named after their folders. `glyphs` is drawn on the spot, and
`glyphs-validation` is its twin for choosing settings.
"""

from collections.abc import Sequence
from typing import NamedTuple

from cibr.names import nearest

KINDS = ("zero-shot", "retrieval")


class Task(NamedTuple):
    """One benchmark: a data set, what is asked of it, its split, and the group whose mean counts as one set."""

    dataset: str
    kind: str = "zero-shot"
    split: str = "test"
    group: str = ""

    @property
    def title(self) -> str:
        """What tables call it: the data set, with the split where it is not the usual one."""
        return self.dataset if self.split in ("test", "validation") else f"{self.dataset}/{self.split}"

    @property
    def file(self) -> str:
        """The name of the file that its results are kept in."""
        return f"{self.title.replace('/', '-')}.safetensors"


def _zero_shot(names: str, split: str = "test", group: str = "") -> tuple[Task, ...]:
    return tuple(Task(name, "zero-shot", split, group) for name in names.split())


def _retrieval(*sets: tuple[str, str]) -> tuple[Task, ...]:
    return tuple(Task(name, "retrieval", split) for name, split in sets)


_GLYPHS = "glyph_digits glyph_letters glyph_scripts glyph_categories glyph_shapes glyph_arrows glyph_diacritics"

SUITES: dict[str, tuple[Task, ...]] = {
    "paper": _zero_shot("vtab-cifar10 vtab-cifar100 food101 vtab-caltech101 vtab-pets vtab-dtd vtab-eurosat")
    + _retrieval(("mscoco_captions", "test"), ("flickr30k", "test")),
    "paper-extras": _zero_shot("imagenet1k vtab-flowers"),
    "mini": _zero_shot("cifar10 caltech101-mini food101-64px imagenette intel-scenes dtd10")
    + _zero_shot("pacs-photo pacs-art_painting pacs-cartoon pacs-sketch", group="pacs")
    + _retrieval(("flickr8k", "test")),
    "glyphs": _zero_shot(_GLYPHS) + _retrieval(("glyphs", "test"), ("glyphs", "test_characters")),
    "glyphs-validation": _zero_shot(_GLYPHS, "validation")
    + _retrieval(("glyphs", "validation"), ("glyphs", "validation_characters")),
}


def suite_tasks(suite: str, kinds: Sequence[str] = KINDS) -> tuple[Task, ...]:
    """The tasks of a suite, all or those of some kinds.

    Raises:
        ValueError: no suite or kind of that name, with those that there are; no task of these kinds.
    """
    if suite not in SUITES:
        raise ValueError(
            f"there is no suite {suite!r}{nearest(suite, SUITES) or '.'} Choose one of {', '.join(SUITES)}"
        )
    if not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds is {kinds!r}: give a list with {' or '.join(map(repr, KINDS))}, or both")
    tasks = tuple(task for task in SUITES[suite] if task.kind in kinds)
    if not tasks:
        raise ValueError(f"suite {suite!r} has no {' or '.join(kinds)} set")
    return tasks
