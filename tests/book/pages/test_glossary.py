"""The glossary explains words of the book, and words that refer to it find their explanation."""

import json
import re
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[3] / "book"
GLOSSARY = (BOOK / "glossary.md").read_text("utf-8")
ENTRIES = re.findall(r"^(\S.*(?:\n\S.*)*)\n    \S", GLOSSARY.split("## Terms")[1], re.MULTILINE)
TERMS = [entry.split("\n") for entry in ENTRIES]


def prose(path):
    if path.suffix == ".md":
        return path.read_text("utf-8")
    cells = json.loads(path.read_text("utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    captions = [json.dumps(cell["metadata"].get("mystnb", {})) for cell in cells]
    return "\n".join(texts + captions)


PAGES = {path: prose(path) for kind in ("*.md", "*.ipynb") for path in BOOK.rglob(kind)}
CHAPTERS = " ".join(" ".join(t.split()) for p, t in PAGES.items() if p.name != "glossary.md")


@pytest.mark.parametrize("names", TERMS, ids=lambda names: names[0])
def test_a_term_of_the_glossary_occurs_in_the_book(names):
    names = [re.sub(r" \(.*\)|(?<=@)k$", "", name) for name in names]
    assert any(re.search(rf"\b{re.escape(name)}", CHAPTERS, re.IGNORECASE) for name in names)


def test_every_reference_to_the_glossary_names_one_of_its_terms():
    symbols = re.findall(r"^\$.*\$$", GLOSSARY, re.MULTILINE)
    known = {name.lower() for names in [*TERMS, symbols] for name in names}
    roles = [r for text in PAGES.values() for r in re.findall(r"\{term\}`([^`]+)`", text)]
    asked = {re.sub(r".*<(.*)>", r"\1", " ".join(role.split())).lower() for role in roles}
    assert len(asked) > 20 and asked <= known


def test_the_terms_are_in_order_and_have_one_explanation_each():
    names = [name.lower() for names in TERMS for name in names]
    assert len(set(names)) == len(names)
    first = [names[0].lower() for names in TERMS]
    assert first == sorted(first)
