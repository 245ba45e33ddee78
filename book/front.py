"""What the first page says of results and chapters: read from the committed tables and notebooks at build time.

Nothing here is typed: a sentence is made of the rows of a table, its interval decides its words, and a missing
table is an error. Reading time counts words, figures and code; running time is what the chapter says of itself.
"""

import json
import re
from pathlib import Path

import pandas as pd

from cibr.sweep.findings import gain_everywhere

WORDS_A_MINUTE = 220
SECONDS_A_FIGURE = 15
SECONDS_A_CODE_CELL = 8
OURS = "CIBR"
NAMES = {
    "zero-shot mean": "zero-shot accuracy",
    "image to text": "image → text recall@1",
    "text to image": "text → image recall@1",
}


def answer(results: Path) -> str:
    """The answer so far as Markdown: the verdict of the main comparison, its three scores, and the count of all.

    Args:
        results: the folder of the committed tables.

    Raises:
        FileNotFoundError: a table is missing; the message has the command that makes it.
    """
    suite = _read(results / "mini_suite.csv", "python book/mini_suite.py")
    differences = _read(
        results / "ablation_differences.csv", "python book/ablation_tables.py"
    )
    heads = {
        "accuracy@1": ("zero-shot accuracy, {}", "mean of "),
        "image_to_text_recall@1": ("image → text recall@1, {}", "flickr8k"),
        "text_to_image_recall@1": ("text → image recall@1, {}", "flickr8k"),
    }
    rows, lines = [], []
    for metric, (name, prefix) in heads.items():
        chosen = suite["dataset"].str.startswith(prefix) & (suite["metric"] == metric)
        row = suite[chosen].iloc[0]
        where = "Flickr8k" if prefix == "flickr8k" else f"{row.dataset} sets"
        rows.append(row)
        lines.append(
            f"| {name.format(where)} | {100 * row.a:.1f}\u00a0% | {100 * row.b:.1f}\u00a0% | "
            f"{interval(row)} |"
        )
    n_seeds = int(min(row.n_seeds for row in rows))
    counted = differences[differences["measure"].isin(NAMES)]
    counted = counted[counted["arm"].str.startswith(OURS)]
    above, below = (
        (counted["verdict"] == f"{side} 0").sum() for side in ("above", "below")
    )
    arms = counted[["setting", "arm", "beta", "variant"]].drop_duplicates()
    header = f"| photos, {n_seeds} seeds | CLIP | CIBR | CIBR − CLIP [95 %] |\n|---|--:|--:|--:|\n"
    return (
        f"{verdict(rows)}\n\n{header}" + "\n".join(lines) + "\n\n"
        f"Both are tuned alike on validation. Of all {len(counted)} such comparisons in the ablation "
        f"({len(arms)} penalties with their settings), {above} lie above zero and {below} below.{gains(counted)}"
    )


def gains(counted: pd.DataFrame) -> str:
    """Which penalties gain in all three scores against every control, as a sentence; empty if none does."""
    betas: dict[str, dict[str, list[str]]] = {}
    for setting, arm, beta, _ in gain_everywhere(counted):
        betas.setdefault(arm, {}).setdefault(setting, []).append(f"{beta:g}")
    names = [
        f"{arm} on "
        + ", and on ".join(f"{s} (β = {', '.join(b)})" for s, b in at.items())
        for arm, at in betas.items()
    ]
    return (
        f" All three scores gain, against every control, with {'; '.join(names)}."
        if names
        else ""
    )


def interval(row: pd.Series) -> str:
    """A difference in points with its interval, with true minus signs."""
    text = f"{100 * row.difference:+.2f} [{100 * row.low:+.2f}, {100 * row.high:+.2f}]"
    return text.replace("-", "−")


def verdict(rows: list[pd.Series]) -> str:
    """One sentence for the intervals of a comparison: better, worse, mixed or no difference that shows."""
    above, below = sum(row.low > 0 for row in rows), sum(row.high < 0 for row in rows)
    widest = 100 * max(max(abs(row.low), abs(row.high)) for row in rows)
    if above and below:
        return "**The answer so far, on photos: it depends.** The penalty gains in one score and costs in another."
    if above:
        return f"**The answer so far, on photos: yes, a little.** {above} of {len(rows)} scores gain, none loses."
    if below:
        return f"**The answer so far, on photos: no.** {below} of {len(rows)} scores lose, none gains."
    return (
        "**The answer so far, on photos: it makes no difference that shows.** Against CLIP tuned as hard, every "
        f"interval holds zero, and none reaches beyond {widest:.1f} points."
    )


def chapter(file: Path) -> dict[str, str]:
    """Title, reading time and running time of a notebook.

    Raises:
        ValueError: the notebook has no title, or does not say how long it takes.
    """
    cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
    prose = "\n\n".join(
        "".join(c["source"]) for c in cells if c["cell_type"] == "markdown"
    )
    title = re.search(r"^# (.+)$", prose, re.M)
    takes = re.search(
        r"\*\*It takes\*\* (?:about )?(.+?)(?: on two cores)?[.,;:\n]", prose
    )
    if not title or not takes:
        raise ValueError(
            f"{file.name} lacks a title or the line '- **It takes** about a minute on two cores.'"
        )
    code = [c for c in cells if c["cell_type"] == "code"]
    figures = sum(
        "image/png" in o.get("data", {}) for c in code for o in c.get("outputs", [])
    )
    minutes = len(prose.split()) / WORDS_A_MINUTE
    minutes += (SECONDS_A_FIGURE * figures + SECONDS_A_CODE_CELL * len(code)) / 60
    return {
        "title": title[1],
        "reading": f"{max(1, round(minutes))}\u00a0min",
        "running": takes[1],
    }


def chapter_table(toc: dict, book: Path, part: str) -> str:
    """The notebooks of one part of the contents as a Markdown table, with their downloads."""
    (listed,) = [p["chapters"] for p in toc["parts"] if p["caption"] == part]
    lines = ["| chapter | to read | to run | notebook |", "|---|--:|--:|---|"]
    for entry in listed:
        file = book.parent / f"{entry['file']}.ipynb"
        if file.is_file():
            about = chapter(file)
            name = entry["file"].removeprefix("book/")
            lines.append(
                f"| {{doc}}`{name}` | {about['reading']} | {about['running']} | "
                f'<a href="../_sources/{entry["file"]}.ipynb" download '
                f'aria-label="Download {name} as a notebook">.ipynb</a> |'
            )
    return "\n".join(lines)


def _read(file: Path, command: str) -> pd.DataFrame:
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.name} is missing, which the first page reads: {command} makes it"
        )
    return pd.read_csv(file)
