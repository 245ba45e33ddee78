"""The search page: queries that were embedded beforehand, and the images that each model ranks first.

`python -m cibr_book.search` makes book/_static/search anew: a file of queries and one of small images for printed
characters and, where `CIBR_DATA` has Flickr8k and `CIBR_MODELS` the two towers, for photos. The page holds the
queries, and book/_static/search.js draws what it is asked for, without a kernel or a network.
"""

import html
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

import cibr
from cibr.data import Pairs
from cibr.metrics.retrieval import count_reaching
from cibr.models import DualEncoder

FOLDER = Path(__file__).resolve().parents[1] / "_static" / "search"
N_FOUND, N_COLUMNS = 6, 20
COLLECTIONS = ("photos", "characters")
PHOTO_QUERIES = (
    "a red car",
    "a bird on the water",
    "children play football",
    "people at a table",
    "snow",
    "a man on a bicycle",
    "a cat",
    "two dogs run on grass",
)
CHARACTER_QUERIES = (
    "smiling face",
    "arrow",
    "letter a with an accent",
    "circle",
    "musical note",
    "heart",
    "star",
)


def collection(
    models: Mapping[str, DualEncoder],
    pairs: Pairs,
    queries: Sequence[str],
    is_right: Bool[Tensor, "q n"],
) -> dict[str, Any]:
    """What every model finds for every query among the images of a set.

    Args:
        models: by the name that the page shows.
        pairs: the images; the first text of each describes it.
        queries: texts.
        is_right: which images are right answers; rows without one are queries that are no text of the set.

    Returns:
        `models`; `images`, their texts; `queries`, each with `text` and `right` (rows of `images`), and for every
        model `found` (rows, best first) and `ranks` (from 1, of the best right image; empty without one).
    """
    found, ranks = [], []
    for model in models.values():
        cosines = (
            model.embed_texts([*queries], truncate=True) @ model.embed_images(pairs.images()).T
        )
        found.append(cosines.topk(N_FOUND, dim=1).indices.tolist())
        best = cosines.masked_fill(~is_right, -torch.inf).amax(1)
        wrong = cosines.masked_fill(is_right, -torch.inf)
        ranks.append((count_reaching(wrong, best) + 1).tolist())  # a tie counts against the model
    shown = [
        {
            "text": _shown(text),
            "right": is_right[i].nonzero().flatten().tolist(),
            "found": [each[i] for each in found],
            "ranks": [each[i] for each in ranks] if is_right[i].any() else [],
        }
        for i, text in enumerate(queries)
    ]
    return {
        "models": [*models],
        "images": [_shown(texts[0]) for texts in pairs.captions],
        "queries": shown,
    }


def _shown(text: str) -> str:
    return text.removesuffix(".").rstrip()


def contact_sheet(pairs: Pairs, side: int) -> Image.Image:
    """All images as squares of `side` pixels, `N_COLUMNS` a row."""
    sheet = Image.new("RGB", (side * N_COLUMNS, side * -(-len(pairs) // N_COLUMNS)))
    for i, image in enumerate(pairs.images()):
        left = max(0, (image.width - image.height) // 2), max(0, (image.height - image.width) // 2)
        square = image.crop((*left, image.width - left[0], image.height - left[1]))
        sheet.paste(square.resize((side, side)), (i % N_COLUMNS * side, i // N_COLUMNS * side))
    return sheet


def as_page(folder: Path = FOLDER) -> str:
    """The piece of HTML: controls, a row of images a model, which the script fills, and the queries."""
    data = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in COLLECTIONS}
    for name, each in data.items():
        (file,) = folder.glob(f"{name}.[jp]*g")
        each |= {"sheet": f"../_static/search/{file.name}", "columns": N_COLUMNS}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    options = "".join(f'<option value="{name}">{html.escape(name)}</option>' for name in data)
    return f"""
<div class="search-page" id="search-page" role="group" aria-label="Search images" hidden>
  <div class="explorer-controls">
    <label for="search-collection">Search</label><select id="search-collection">{options}</select>
    <label for="search-query">for</label>
    <input id="search-query" list="search-known" autocomplete="off" placeholder="type, and choose a text">
  </div>
  <datalist id="search-known"></datalist>
  <p class="search-some" id="search-some"></p>
  <p id="search-summary" class="explorer-said" aria-live="polite"></p>
  <div id="search-found"></div>
</div>
<noscript>This page needs JavaScript; <a href="retrieval.html">the chapter on retrieval</a> has figures.</noscript>
<script type="application/json" id="search-data">{text}</script>
"""


def _save(name: str, data: dict[str, Any], sheet: Image.Image, as_photos: bool) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(
        json.dumps(data, separators=(",", ":")) + "\n", encoding="utf-8"
    )
    if as_photos:
        sheet.save(FOLDER / f"{name}.jpg", quality=72, optimize=True)
    else:
        sheet.quantize(64).save(FOLDER / f"{name}.png", optimize=True)


def _first(pairs: Pairs, n: int) -> Pairs:
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    return pairs.subset(order[:n].sort().values)


def trained_heads(beta: float) -> DualEncoder:
    """Heads on the frozen towers, as in experiments/photos_beta.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(
            dataset="flickr8k", model="frozen", temperature=0.03, validate_every=10, seed=1
        )
        config = cibr.configure(
            penalty="vmf", kappa_e=8192, beta=beta, output_dir=folder, **settings
        )
        train, validation, _ = cibr.load_splits(config)
        model = cibr.build_model(config, train)
        cibr.fit(model, train, validation, config)
        return model


def main() -> None:
    """Embed queries and images and write what the page shows."""
    pairs = _first(cibr.load_pairs("glyphs", "test"), 600)
    names = [texts[0] for texts in pairs.captions]
    queries = [*CHARACTER_QUERIES, *dict.fromkeys(names[::6])]
    right = torch.tensor([[text == name for name in names] for text in queries])
    models = {name: DualEncoder.from_pretrained(name) for name in ("clip-tiny", "cibr-tiny")}
    shown = {"CLIP": models["clip-tiny"], "CIBR, beta 0.05": models["cibr-tiny"]}
    _save(
        "characters",
        collection(shown, pairs, queries, right),
        contact_sheet(pairs, 32),
        as_photos=False,
    )

    pairs = _first(cibr.load_pairs("flickr8k", "test"), 240)
    asked = range(0, len(pairs), 2)
    queries = [*PHOTO_QUERIES, *(pairs.captions[i][1] for i in asked)]
    right = torch.zeros(len(queries), len(pairs), dtype=torch.bool)
    right[torch.arange(len(PHOTO_QUERIES), len(queries)), torch.tensor(asked)] = True
    shown = {
        ("CLIP" if beta == 0 else f"CIBR, beta {beta:g}"): trained_heads(beta)
        for beta in (0.0, 0.1, 1.0)
    }
    _save(
        "photos", collection(shown, pairs, queries, right), contact_sheet(pairs, 96), as_photos=True
    )


if __name__ == "__main__":
    main()
