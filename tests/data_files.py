"""Small data sets on disk: image folders, and sets of shards with captions or classes."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

TEMPLATES = "zeroshot_classification_templates.txt"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(grey: int = 100, kind: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", (8, 8), (grey, grey, grey)), kind)


def write_images(folder: Path, *names: str, grey: int = 100) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(grey))
    return folder


def write_metadata(folder: Path, content: str | list[dict]) -> None:
    """Writes metadata.csv from its text, or metadata.jsonl from its rows."""
    if isinstance(content, str):
        (folder / "metadata.csv").write_text(content, encoding="utf-8")
    else:
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, content)) + "\n")


def write_shards(root: Path, *shards: list, split: str = "train") -> Path:
    """A set of shards, each a list of (member's name, content)."""
    (root / split).mkdir(parents=True, exist_ok=True)
    for number, members in enumerate(shards):
        with tarfile.open(root / split / f"{number}.tar", "w") as tar:
            for name, data in members:
                data = data.encode() if isinstance(data, str) else data
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (root / split / "nshards.txt").write_text(f"{len(shards)}\n")
    (root / "dataset_type.txt").write_text("retrieval")
    return root


def write_classes(root: Path, *members: tuple, names: str = "cat\nsea lion\n") -> Path:
    """A validation split of two classes in one shard, with more members between its two samples."""
    given = [("a.png", png(10)), ("a.cls", "1"), ("b.png", png(20)), ("b.cls", "0\n")]
    write_shards(root, [*given[:2], *members, *given[2:]], split="val")
    (root / "classnames.txt").write_text(names)
    templates = "\ufeffa photo of a {c}.\n\n  a {c}, {small}  \n"
    (root / TEMPLATES).write_text(templates, encoding="utf-8")
    return root
