"""The search page: queries embedded beforehand, and the photos that each model ranks first.

`python -m cibr_book.search` makes book/_static/search anew, a file of queries and one of small
photos, from Flickr8k in `CIBR_DATA` and the two towers in `CIBR_MODELS`. book/_static/search.js
draws what the page is asked for, without a kernel or a network.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

import cibr
from cibr.data import Pairs
from cibr.evaluate import Task, load_task
from cibr.metrics.retrieval import count_reaching
from cibr.models import DualEncoder
from cibr_book.pages import filled

_FOLDER = Path(__file__).resolve().parents[1] / "_static" / "search"
_N_FOUND, _N_COLUMNS = 6, 20
_QUERIES = ("a red car", "a bird on the water", "children play football", "people at a table")
_QUERIES += ("snow", "a man on a bicycle", "a cat", "two dogs run on grass")


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
        is_right: which images are right answers; rows without one are queries that are no text of
            the set.

    Returns:
        `models`; `images`, their texts; `queries`, each with `text` and `right` (rows of `images`),
        and for every model `found` (rows, best first) and `ranks` (from 1, of the best right image;
        empty without one).
    """
    nearest = []
    ranks = []
    for model in models.values():
        texts = model.embed_texts([*queries], truncate=True)
        cosines = texts @ model.embed_images(pairs.images()).T
        # A tie counts against the model: of equal cosines, the wrong image's comes first.
        by_wrong = is_right.int().sort(dim=1, stable=True).indices
        order = cosines.gather(1, by_wrong).sort(dim=1, descending=True, stable=True).indices
        nearest.append(by_wrong.gather(1, order)[:, :_N_FOUND].tolist())
        best = cosines.masked_fill(~is_right, -torch.inf).amax(1)
        wrong = cosines.masked_fill(is_right, -torch.inf)
        ranks.append((count_reaching(wrong, best) + 1).tolist())
    answers = [
        {
            "text": _without_stop(text),
            "right": right.nonzero().flatten().tolist(),
            "found": [rows[i] for rows in nearest],
            "ranks": [rank[i] for rank in ranks] if right.any() else [],
        }
        for i, (text, right) in enumerate(zip(queries, is_right, strict=True))
    ]
    images = [_without_stop(texts[0]) for texts in pairs.captions]
    return {"models": [*models], "images": images, "queries": answers}


def _without_stop(text: str) -> str:
    return text.removesuffix(".").rstrip()


def contact_sheet(pairs: Pairs, side: int) -> Image.Image:
    """The middle of all images as squares of `side` pixels, twenty in a row."""
    sheet = Image.new("RGB", (side * _N_COLUMNS, side * -(-len(pairs) // _N_COLUMNS)))
    for i, image in enumerate(pairs.images()):
        row, column = divmod(i, _N_COLUMNS)
        left = max(0, (image.width - image.height) // 2)
        top = max(0, (image.height - image.width) // 2)
        square = image.crop((left, top, image.width - left, image.height - top))
        sheet.paste(square.resize((side, side)), (column * side, row * side))
    return sheet


def scores(data: Mapping[str, Any]) -> pd.DataFrame:
    """Every model's recalls in per cent over all queries that have a right image, one row each."""
    ranks = torch.tensor([query["ranks"] for query in data["queries"] if query["ranks"]])
    columns = {f"recall@{k}, %": 100 * (ranks <= k).double().mean(0) for k in (1, 5)}
    columns = {name: values.round(decimals=1).tolist() for name, values in columns.items()}
    models = pd.Index(data["models"], name=f"{len(ranks)} captions")
    return pd.DataFrame(columns, models)


def as_page() -> str:
    """The piece of HTML: controls, places for photos that the script fills, and the queries."""
    data = json.loads((_FOLDER / "photos.json").read_text("utf-8"))
    data |= {"sheet": "../_static/search/photos.jpg", "columns": _N_COLUMNS}
    return filled(__file__, data, scores=scores(data).reset_index().to_html(index=False, border=0))


def trained_heads(beta: float) -> DualEncoder:
    """Heads on the frozen towers, as in experiments/photos_beta.yaml."""
    with tempfile.TemporaryDirectory() as folder:
        settings = dict(dataset="flickr8k", model="frozen", temperature=0.03, validate_every=10)
        settings |= dict(penalty="vmf", kappa_e=8192, beta=beta, seed=1, output_dir=folder)
        config = cibr.configure(**settings)
        train, validation, _ = cibr.load_splits(config)
        model = cibr.build_model(config, train)
        cibr.fit(model, train, validation, config)
        return model


def main() -> None:
    """Embed queries and photos and write what the page shows."""
    pairs = load_task(Task("flickr8k", "retrieval"), 240)
    asked = range(0, len(pairs), 2)
    queries = [*_QUERIES, *(pairs.captions[i][1] for i in asked)]
    right = torch.zeros(len(queries), len(pairs), dtype=torch.bool)
    right[torch.arange(len(_QUERIES), len(queries)), torch.tensor(asked)] = True
    betas = {"CLIP": 0.0, "CIBR, beta 0.1": 0.1, "CIBR, beta 1": 1.0}
    models = {name: trained_heads(beta) for name, beta in betas.items()}
    data = collection(models, pairs, queries, right)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps(data, separators=(",", ":"))
    (_FOLDER / "photos.json").write_text(f"{text}\n", encoding="utf-8")
    contact_sheet(pairs, 96).save(_FOLDER / "photos.jpg", optimize=True, quality=72)


if __name__ == "__main__":
    main()
