"""The report of a comparison of recipes as one HTML page: advice, table, figure, searches."""

import base64
import html
import io

import pandas as pd
import torch

from cibr.data import Pairs
from cibr.metrics import query_ranks
from cibr.models import DualEncoder
from cibr.models.features import Inputs, embed_pairs

_STYLE = """body { font: 16px sans-serif; max-width: 65em; margin: auto; padding: 1em }
td, th { padding: .2em .5em; text-align: right } td { white-space: nowrap }
img { height: 96px; margin: 2px; max-width: 100% }
img.figure { height: auto } img.match { outline: 3px solid green }"""


SEARCH = "text_to_image_mean"  # the metric of search


def _search(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["metric"] == SEARCH]


def shown_table(table: pd.DataFrame) -> pd.DataFrame:
    """Recalls in per cent by recipe, and the difference in search from CLIP heads in points."""
    wide = 100 * table.pivot(index="recipe", columns="metric", values="value")
    wide = wide.loc[table["recipe"].unique(), table["metric"].unique()].round(1)
    search = _search(table).set_index("recipe")
    points = 100 * search[["difference", "low", "high"]]
    text = [f"{d:+.1f} [{low:+.1f}, {high:+.1f}]" for d, low, high in points.to_numpy()]
    wide["search minus CLIP"] = pd.Series(text, points.index)
    short = {"image_to_text_": "i→t ", "text_to_image_": "t→i ", "recall": ""}
    for long, name in short.items():
        wide.columns = wide.columns.str.replace(long, name)
    return wide.assign(
        **{"at the end of its range": search["at_end"]} if search["at_end"].any() else {}
    )


def report(advice: str, table: pd.DataFrame, name: str, model: DualEncoder, test: Inputs) -> str:
    """The page.

    Args:
        advice: a sentence.
        table: of `Comparison`.
        name: the recipe of the model.
        model: the winner in search, or the one to keep.
        test: held-out pairs; the page shows their ten best and worst searches.
    """
    pairs = test.pairs
    images, texts = embed_pairs(model, test)
    found = query_ranks(images, texts, *pairs.retrieval_targets())
    rows, ranks = found.text_rows, found.text_ranks
    texts = texts[rows]
    owner = pairs.text_to_image()[rows].tolist()
    captions = [pairs.texts()[row] for row in rows.tolist()]
    own = (images[owner] * texts).sum(1)  # of equal ranks the nearest are the best
    order = (ranks - own / 4).argsort(stable=True).tolist()
    parts = [f"<h1>Which recipe works on {html.escape(pairs.name)}?</h1>"]
    parts += [f"<p>{html.escape(advice)}</p>", shown_table(table).to_html(border=0, na_rep="")]
    parts += [_image(_figure(table), "png", "figure", "differences from CLIP heads")]
    parts.append(f"<p>The searches are those of {html.escape(name)}, the saved model.</p>")
    labels = pairs.retrieval_targets()[2]
    labels = torch.arange(len(pairs)) if labels is None else labels
    for title, chosen in (("Best searches", order[:10]), ("Worst searches", order[:-11:-1])):
        parts.append(
            f"<h2>{title}</h2><p>The three nearest images; those that match are framed.</p>"
        )
        for text in chosen:
            cosines, matches = images @ texts[text], labels == labels[owner[text]]
            nearest = cosines.argsort(descending=True)[:3].tolist()
            best = int(cosines.masked_fill(~matches, -2).argmax())
            shown = nearest if best in nearest else [*nearest, best]
            found = "".join(_thumbnail(pairs, i, bool(matches[i])) for i in shown)
            line = f"{html.escape(captions[text])} (the first match at rank {int(ranks[text]) + 1})"
            parts.append(f"<p>{line}<br>{found}</p>")
    head = "<!doctype html><html lang='en'><meta charset='utf-8'><title>Recipes compared</title>"
    return f"{head}<style>{_STYLE}</style>{''.join(parts)}</html>"


def _figure(table: pd.DataFrame) -> bytes:
    from matplotlib.figure import Figure

    search = _search(table).iloc[::-1]
    file = io.BytesIO()
    figure = Figure((7, 0.4 * len(search) + 0.8), layout="constrained")
    axis = figure.subplots()
    middle, low, high = 100 * search[["difference", "low", "high"]].to_numpy().T
    names = search["recipe"].str.replace("$", r"\$")
    axis.errorbar(middle, names, xerr=(middle - low, high - middle), fmt="o", capsize=3)
    axis.axvline(0, color="grey", lw=1)
    axis.set_xlabel("search recall minus CLIP heads, points; 95 % intervals over images and seeds")
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _thumbnail(pairs: Pairs, i: int, is_match: bool) -> str:
    file = io.BytesIO()
    image = pairs.image(i).copy()
    image.thumbnail((192, 192))
    image.convert("RGB").save(file, "JPEG")
    return _image(file.getvalue(), "jpeg", "match" if is_match else "", str(pairs.keys[i]))


def _image(content: bytes, kind: str, of_class: str, alt: str) -> str:
    code = base64.b64encode(content).decode()
    source = f"data:image/{kind};base64,{code}"
    return f"<img class='{of_class}' alt='{html.escape(alt, quote=True)}' src='{source}'>"
