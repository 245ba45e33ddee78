"""Compare outputs of a run with stored ones where training leaves small differences.

Training sums in another order on another processor, so the last digits of what it leads to differ.
How far a number may be off depends on its unit. In text the unit stands behind the number
(`41.2 %`, `from -0.1 to +0.4 points`, `1.99 nats`), or the quantity's name before it
(`gap 0.283`); in a table at the end of the column's header. Numbers without a unit, such as
settings, and all words must be equal.
"""

import re
from html.parser import HTMLParser
from itertools import accumulate

TOLERANCES = {
    "%": 3.0,
    "points": 1.0,
    "nats": 0.3,
    "share": 0.03,
    "1 - cos": 0.02,
    "gap": 0.02,
    "cosine": 0.02,
}
# None in a name: R@10 and 2.13.0 have none, nor has 1 - cos.
_NUMBER = r"(?<![\w.@])[-+]?\d+(?:\.\d+)?(?![\w.]*\w)(?! - cos)"
_BEHIND = re.compile(r"\s?(%|per cent|points|nats)(?!\w)")
_BEFORE = re.compile(r"(1 - cos|gap|share|cosine) $")
_HEADER = re.compile(r"(1 - cos|gap|share|cosine)\b.*|(?:.*, )?(%|per cent|points|nats)")
_SAME = {"per cent": "%"}


def is_close(text: str, stored: str) -> bool:
    """Whether two texts have equal words, and numbers that are equal or, with a unit, close."""
    return _agree(_quantities(text), _quantities(stored))


def is_close_html(html: str, stored: str) -> bool:
    """Whether two HTML tables have equal headers and words, and numbers as `is_close` wants them.

    A cell's numbers have the unit of its column's header if no unit stands behind them.
    """
    return _agree(_of_html(html), _of_html(stored))


def _agree(own: list[tuple], theirs: list[tuple]) -> bool:
    """Whether quantities, `(number or word, unit or None)`, agree one by one."""
    if len(own) != len(theirs):
        return False
    return all(
        a[1] == b[1] and (a[0] == b[0] if a[1] is None else _near(a[0], b[0], a[1]))
        for a, b in zip(own, theirs, strict=True)
    )


def _near(own: str, stored: str, unit: str) -> bool:
    """Whether two numbers are within the unit's tolerance.

    Numbers of different signs agree only if both are within a third of it: what a page says hangs
    on the sign of a difference that is no smaller.
    """
    a, b, tolerance = float(own), float(stored), TOLERANCES[unit]
    if a * b < 0 and max(abs(a), abs(b)) > tolerance / 3:
        return False
    return abs(a - b) <= tolerance


def _quantities(text: str, default: str | None = None) -> list[tuple[str, str | None]]:
    """The words, numbers among them, of a text in order, each with its unit or None.

    Args:
        text: of one line or more.
        default: unit of numbers that name none.
    """
    found = list(re.finditer(_NUMBER, text))
    units: list[str | None] = []
    for match, following in zip(reversed(found), [None, *reversed(found)], strict=False):
        if unit := _BEHIND.match(text, match.end()):
            units.append(_SAME.get(unit[1], unit[1]))
        elif name := _BEFORE.search(text[: match.start()]):
            units.append(name[1])
        elif following and text[match.end() : following.start()] == " to ":
            units.append(units[-1])  # of a range, whose end has the unit
        else:
            units.append(default)
    parts, end = [], 0
    for match, unit in zip(found, reversed(units), strict=True):
        parts += [(word, None) for word in text[end : match.start()].split()]
        parts.append((match.group(), unit))
        end = match.end()
    return parts + [(word, None) for word in text[end:].split()]


class _Tables(HTMLParser):
    """Text of HTML in order: `pieces`, each with the unit of its column, or None."""

    def __init__(self):
        super().__init__()
        self.pieces: list[tuple[str, str | None]] = []
        self._is_head = self._is_style = False
        self._headers: list[list[str]] = []
        self._row: list[tuple[str, int, str]] = []  # tag, columns and text of each cell
        self._tag: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_style |= tag == "style"
        if tag == "table":
            self._headers = []
        elif tag == "thead":
            self._is_head = True
        elif tag == "tr":
            self._row = []
        elif tag in ("td", "th"):
            self._tag = tag
            self._row.append((tag, int(dict(attrs).get("colspan") or 1), ""))

    def handle_data(self, data: str) -> None:
        if self._tag is not None:
            tag, columns, text = self._row[-1]
            self._row[-1] = tag, columns, text + data
        elif not self._is_style:
            self.pieces.append((data, None))

    def handle_endtag(self, tag: str) -> None:
        if tag == "style":
            self._is_style = False
        elif tag == "thead":
            self._is_head = False
        elif tag in ("td", "th"):
            self._tag = None
        elif tag == "tr" and self._is_head:
            self._headers.append([t for _, columns, t in self._row for _ in range(columns)])
            self.pieces += [(text, None) for *_, text in self._row]
        elif tag == "tr":
            n_labels = sum(cell[0] == "th" for cell in self._row)
            units = self._units()
            ends = accumulate(columns for _, columns, _ in self._row[n_labels:])
            first = len(units) - sum(columns for _, columns, _ in self._row[n_labels:])
            self.pieces += [(text, None) for *_, text in self._row[:n_labels]]
            for (_, columns, text), end in zip(self._row[n_labels:], ends, strict=True):
                start = first + end - columns
                self.pieces.append((text, units[start] if 0 <= start < len(units) else None))

    def _units(self) -> list[str | None]:
        """The unit of each column: the first that one of its headers names."""
        units = []
        for column in zip(*self._headers, strict=False):
            names = [match for text in column if (match := _HEADER.fullmatch(text.strip()))]
            unit = names and (names[0][1] or names[0][2])
            units.append(_SAME.get(unit, unit) if unit else None)
        return units


def _of_html(html: str) -> list[tuple[str, str | None]]:
    parser = _Tables()
    parser.feed(html)
    parser.close()
    return [each for text, unit in parser.pieces for each in _quantities(text, unit)]
