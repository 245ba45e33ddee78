"""Draw the idea in one picture: `python book/drawings.py` writes book/_static/idea.svg.

The colours are classes that book/_static/custom.css fills, so that one drawing serves the light and the dark page;
the build puts it into the page itself.
"""

from pathlib import Path

FILE = Path(__file__).resolve().parent / "_static" / "idea.svg"
TITLE = (
    "Two overlapping circles, picture and text. In the overlap is what both tell: dog, beach. "
    "Outside it are the blue of the sky and the angle of the picture, and the choice of words and the grammar "
    "of the text. CLIP pulls on the overlap; CIBR also puts a price of beta a nat on the two outer parts."
)
WIDTH, HEIGHT = 460, 300
LEFT, RIGHT, CENTRE, RADIUS = 170, 290, 118, 102


def text(x: int, y: int, words: str, kind: str = "") -> str:
    """One centred line."""
    return f'<text x="{x}" y="{y}" class="{kind}">{words}</text>'


def crescent(x: int, other: int, kind: str) -> str:
    """A circle without its overlap with the other, as one path."""
    half = (other - x) / 2
    height = (RADIUS**2 - half**2) ** 0.5
    top, bottom = (
        f"{x + half:g} {CENTRE - height:.2f}",
        f"{x + half:g} {CENTRE + height:.2f}",
    )
    out, back = (0, 1) if other > x else (1, 0)
    return (
        f'<path class="{kind}" d="M {top} A {RADIUS} {RADIUS} 0 1 {out} {bottom} '
        f'A {RADIUS} {RADIUS} 0 0 {back} {top} Z"/>'
    )


def overlap(kind: str) -> str:
    """What both circles share, as one path."""
    half = (RIGHT - LEFT) / 2
    height = (RADIUS**2 - half**2) ** 0.5
    top, bottom = (
        f"{LEFT + half:g} {CENTRE - height:.2f}",
        f"{LEFT + half:g} {CENTRE + height:.2f}",
    )
    return (
        f'<path class="{kind}" d="M {top} A {RADIUS} {RADIUS} 0 0 1 {bottom} '
        f'A {RADIUS} {RADIUS} 0 0 1 {top} Z"/>'
    )


def drawing() -> str:
    """The whole drawing."""
    middle = (LEFT + RIGHT) // 2
    parts = [
        crescent(LEFT, RIGHT, "image-only"),
        crescent(RIGHT, LEFT, "text-only"),
        overlap("shared"),
        text(100, 14, "picture", "head"),
        text(360, 14, "text", "head"),
        text(120, 100, "blue of sky"),
        text(120, 122, "angle, light"),
        text(120, 144, "grain"),
        text(340, 100, "word choice"),
        text(340, 122, "grammar"),
        text(340, 144, "length"),
        text(middle, 106, "dog", "strong"),
        text(middle, 130, "beach", "strong"),
        text(middle, 248, "CLIP pulls here: keep it", "strong"),
        f'<path class="arrow" d="M {middle} 232 V 208"/>',
        text(middle, 288, "CIBR adds a price here: β for each nat", "price"),
        '<path class="arrow price-line" d="M 92 280 H 60 V 206"/>',
        '<path class="arrow price-line" d="M 368 280 H 400 V 206"/>',
    ]
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="idea" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="idea-title">\n<title id="idea-title">{TITLE}</title>\n{body}\n</svg>\n'
    )


def main() -> None:
    """Write the file."""
    FILE.write_text(drawing(), encoding="utf-8")
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
