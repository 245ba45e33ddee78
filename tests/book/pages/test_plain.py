"""What is read stays short and plain: words, numbers and brackets, counted."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
CHAPTERS = [chapter["file"] for part in PARTS[:2] for chapter in part["chapters"]]
MOST_WORDS = {"book/robustness": 600, "book/between": 650}
NO_PROSE = (  # blocks of code, equations, tables, headings, links, formulas and code in the line
    *(r"^---\n.*?^---\n", r"^(`{3,})[^\n]*\n.*?^\1 *$", r"\$\$.*?\$\$", r"^#.*?$", r"^\|.*?$"),
    *(r"!?\[([^]]*)\]\([^)]*\)", r"\{[\w:]+\}`[^`]*`", r"\$[^$]*\$", r"`[^`]*`", r"^:.*?$"),
)
BOX = r"^`{3,}\{admonition\}.*?\n(?::.*\n)*(.*?)^`{3,}$"  # whose words count, too
NUMBER = re.compile(r"(?<![\w.])(?<![Tt]heorem )[-+]?\d[\d,.]*")


def markdown(page):
    if (file := ROOT / f"{page}.md").exists():
        return file.read_text("utf-8")
    cells = nbformat.read(ROOT / f"{page}.ipynb", as_version=4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def prose(text):
    text = re.sub(BOX, r"\1", text, flags=re.MULTILINE | re.DOTALL)
    for pattern in NO_PROSE:
        text = re.sub(pattern, " ", text, flags=re.MULTILINE | re.DOTALL)
    return text


def n_words(text):
    return len(text.split())


def test_ten_chapters_have_ten_thousand_words():
    words = {chapter: n_words(markdown(chapter)) for chapter in CHAPTERS}
    assert len(words) == 10 and sum(words.values()) <= 10_000, words
    assert all(words[name] <= most for name, most in MOST_WORDS.items())


@pytest.mark.parametrize("page", [*CHAPTERS, "README", "book/intro"])
def test_a_page_has_few_numbers_and_no_interval_in_its_prose(page):
    text = prose(markdown(page))
    numbers = [n for n in NUMBER.findall(text) if not re.fullmatch(r"(19|20)\d\d\W*", n)]
    assert len(numbers) <= 0.03 * n_words(text), numbers
    assert not re.search(r"\[[-+]?\d", text)
    assert not re.search(r"\b(undecided|contradicted|unplanned)\b", text)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_answers_its_question_first(chapter):
    text = markdown(chapter)
    answer = re.search(r"^\*\*", text, re.MULTILINE)
    assert "?" in text[: answer.start()]
    assert n_words(prose(text[: answer.start()])) <= 120


def test_readme_and_the_first_page_are_read_in_a_minute_each():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert readme.count("\n") <= 60 and max(map(len, readme.splitlines())) <= 220
    assert n_words(prose(readme)) <= 450 and len(NUMBER.findall(prose(readme))) <= 8
    assert n_words(prose(markdown("book/intro"))) <= 500
