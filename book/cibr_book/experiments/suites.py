"""The study's suites of benchmarks, which importing this module adds to `cibr.evaluate.SUITES`."""

from cibr.evaluate import SUITES, Task


def _tasks(names: str, split: str = "test", group: str = "") -> list[Task]:
    return [Task(name, split, group) for name in names.split()]


_MINI = _tasks("cifar10 caltech101-mini food101-64px imagenette intel-scenes dtd10")
_MINI += _tasks("pacs-photo pacs-art_painting pacs-cartoon pacs-sketch", group="pacs")
# `mini` and `confirmation` have subsets in folders of $CIBR_DATA; the glyphs' suites are rendered.
# Models are selected on `paper-validation` and `glyphs-validation`; nothing on `confirmation`.
SUITES |= {
    "paper-extras": tuple(_tasks("imagenet1k vtab-flowers")),
    "paper-validation": tuple(_tasks("vtab-flowers cars sun397 imagenetv2")),
    "mini": (*_MINI, Task("flickr8k")),
    "confirmation": (
        *_tasks("clothing10 flowers5 rsscn7 glyph_digits"),
        Task("coco-mini"),
    ),
}
for _suite, _split in (("glyphs", "test"), ("glyphs-validation", "validation")):
    SUITES[_suite] = (
        *_tasks("glyph_digits glyph_letters glyph_scripts glyph_categories", _split),
        *_tasks("glyph_shapes glyph_arrows glyph_diacritics", _split),
        Task("glyphs", _split),
        Task("glyphs", f"{_split}_characters"),
    )
