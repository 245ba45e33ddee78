"""Photos with a shortcut: a style that goes with a word of the captions, or that captions name.

In training and validation a photo is in a style with a probability that depends on whether a
caption has the word; or, whatever the word, captions end with the name of their photo's style. Test
photos and captions follow the same rule (kept), none (removed) or the opposite one (reversed), with
the same random numbers, so that only the shortcut differs between the three.

Features of frozen towers (or pixels and tokens, for towers from scratch) are computed once for both
renderings of every photo and for all versions of every caption, and a draw picks rows of them.
`predicted_values` gives theorem 3's prediction for a penalty without training. `glyph_sheets` has
shortcuts of many values and a known shared content. The runs of experiments/shortcuts.yaml were
made by the commits that their rows name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cibr.data import Pairs
from cibr.data.glyphs import SERIF, STIX, draw_all, glyph_characters, pixel_image, sample_factors
from cibr.losses.cca import canonical_maps, centred_moments
from cibr.metrics import mean_interval
from cibr.models import DualEncoder
from cibr.models.features import Inputs, prepare
from cibr_book import intervals
from cibr_book.experiments.corruptions import PAPERS, has_word, in_both_styles
from cibr_book.worlds.threshold import free_length_gains, shifted_nats

LOOKS = {  # the styles of photos, "" for a photo as it is, and their names at the end of a caption
    "grey": {"": "in colour", "grey": "in grey"},
    "tint": {"": "in plain light", "tint": "in amber light"},
    "blur": {"": "in focus", "blur": "out of focus"},
    "paper": {colour: f"on {colour} paper" for colour in PAPERS},
}
SHIFTS = {"kept": 1.0, "removed": 0.0, "reversed": -1.0}  # times the tie of style and caption
RIDGES = ((1.0, 0.3), (3.0, 1.0), (10.0, 3.0), (30.0, 10.0))  # of image and text
_SHOWN = (
    "greek small letter (?:zeta|eta|iota|kappa|mu|nu|xi|rho|sigma|tau|phi|chi)"
    "|latin capital letter [fgjkqrwz]"
)
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Shortcut:
    """A shortcut of photos and captions.

    Args:
        word: a whole word, in any case, that some captions have.
        style: one of `LOOKS`.
        strength: probability that a photo without the word is in the style, and that one with the
            word is not; 0.5 for no tie to the word.
        named: share of the captions that end with the name of their photo's style, or of photos as
            they are.
    """

    word: str
    style: str = "grey"
    strength: float | int = 0.5
    named: float | int = 0.0


class Views(NamedTuple):
    """What every draw of a split is picked from.

    Args:
        plain: photos and captions as they are.
        images: features or pixels of the photos in every look, [looks, n, ...].
        captions: all captions as they are, and with the name of each look.
        texts: their features, or tokens and mask, [versions, m, q] each.
    """

    plain: Inputs
    images: Tensor
    captions: list[list[str]]
    texts: tuple[Tensor, ...]


def prepare_views(model: DualEncoder, pairs: Pairs, style: str, with_names: bool) -> Views:
    """Features of both renderings of the photos and of the versions of their captions.

    Args:
        model: with frozen towers, or small enough for all pixels to be in memory.
        pairs: a split.
        style: one of `LOOKS`.
        with_names: whether captions with the names of the styles are needed, too.
    """
    n, captions, images = len(pairs), [pairs.texts()], []
    plain = prepare(model, pairs)
    for look, name in LOOKS[style].items():
        rendered = in_both_styles(pairs, look).subset(range(n, 2 * n)) if look else pairs
        images.append(prepare(model, rendered).images)
        captions += [[f"{text.rstrip(' .')}, {name}" for text in pairs.texts()]] * with_names
    one = pairs.subset([0])  # its image is not needed
    versions = [prepare(model, one, texts=each).texts for each in captions]
    texts = zip(*versions, strict=True)  # tokens of one version may be longer than another's
    padded = (pad_sequence([part.T for part in parts], batch_first=True).mT for parts in texts)
    return Views(plain, torch.stack(images), captions, tuple(padded))


def draw(views: Views, shortcut: Shortcut, seed: int, shift: str = "kept") -> Inputs:
    """Pairs of a split with a shortcut.

    Args:
        views: of the split.
        shortcut: its style is that of the views.
        seed: of the uniform numbers, which differ by split and are the same for every shift.
        shift: one of `SHIFTS`; a removed shortcut has strength 0.5 and names of either style, a
            reversed one has 1 - strength and the names of the other style.

    Returns:
        The pairs with their features; `pairs.factors` says which photos have the `word` and are in
        the `style`.
    """
    pairs = views.plain.pairs
    owner, with_word = pairs.text_to_image(), has_word(pairs, shortcut.word)
    n, m, n_looks = len(pairs), len(owner), len(views.images)
    generator = torch.Generator().manual_seed(3 * seed + _SPLITS.index(pairs.split))
    of_image, of_name, coin = (torch.rand(size, generator=generator) for size in (n, m, m))
    look = (n_looks * of_image).long()
    if n_looks == 2:
        tie = SHIFTS[shift] * (shortcut.strength - 0.5)
        look = (of_image < torch.where(with_word, 0.5 - tie, 0.5 + tie)).long()
    opposite = (look[owner] + n_looks // 2) % n_looks
    said = {"kept": look[owner], "removed": (n_looks * coin).long(), "reversed": opposite}[shift]
    version = torch.where(of_name < shortcut.named, 1 + said, 0)
    words = iter([views.captions[v][j] for j, v in enumerate(version.tolist())])
    captions = [[*islice(words, len(own))] for own in pairs.captions]
    factors = pd.DataFrame({"word": with_word.numpy(), "style": look.numpy()})
    pairs = replace(pairs, captions=captions, factors=factors)
    images = views.images[look, torch.arange(n)]
    texts = tuple(part[version, torch.arange(m)] for part in views.texts)
    labels = pairs.match_labels()[owner]
    return replace(views.plain, pairs=pairs, images=images, texts=texts, labels=labels)


def glyph_sheets(first: float, last: float) -> list[Pairs]:
    """Sheets of four characters: 2,000 for training, 1,000 each for validation and test.

    A caption names the four of twenty Greek and Latin letters on its sheet; they share nothing
    else. The probability that a letter is named, rather than any of the twenty, falls evenly from
    `first` to `last`. If these are equal, all letters are shared equally, with equal correlations
    for an encoder that sees them equally well, and a gap below. Otherwise they form a tail.
    """
    known = glyph_characters().sample(frac=1, random_state=0)
    shown = known[known["name"].str.fullmatch(_SHOWN)]
    factors = sample_factors(shown, SERIF + STIX, 32).assign(ink=0, paper=255)
    pixels = draw_all(factors).reshape(len(shown), -1, 32, 32)
    generator = np.random.default_rng(0)
    characters = generator.random((4000, len(shown))).argsort(1)[:, :4]
    sheets = pixels[characters, generator.integers(pixels.shape[1], size=characters.shape)]
    sheets = sheets.reshape(-1, 2, 2, 32, 32).swapaxes(2, 3).reshape(-1, 64, 64)
    shares = np.linspace(first, last, len(shown))[characters]
    is_named = generator.random(characters.shape) < shares
    others = generator.integers(len(shown), size=characters.shape)
    names = shown["name"].str.split().str[-1].to_numpy()[np.where(is_named, characters, others)]
    captions = [["{}, {}, {} and {}".format(*four)] for four in names]
    keys = [f"sheet {i}" for i in range(4000)]
    whole = Pairs("sheets", "train", captions, keys, partial(pixel_image, sheets))
    ranges = range(2000), range(2000, 3000), range(3000, 4000)
    parts = zip(_SPLITS, ranges, strict=True)
    return [replace(whole.subset(rows), split=split) for split, rows in parts]


def predicted_values(
    train: Inputs, validation: Mapping[str, Inputs], doses: list[float]
) -> dict[str, float]:
    """Theorem 3 (b)'s value V of a penalty under each shift, from frozen features alone.

    Directions are those of a ridge CCA of the training pairs, with the ridges of the highest value
    in distribution. Their correlations are of held-out pairs, as they are and under a shift; those
    that decide on the gains come from the other half of the photos, so that errors of weak
    directions do not add up.

    Args:
        train: the training pairs.
        validation: the validation pairs under each shift, with `kept` among them.
        doses: weights of 1 - cos times the temperature.

    Returns:
        `<shift>/value@<dose>` in nats, for no penalty, 0, and each dose: where it is above that of
        0, the penalty should gain.
    """
    _, moments = centred_moments(train.images[train.pairs.text_to_image()], train.texts[0])
    maps = [canonical_maps(moments, len(moments[1]), *ridges) for ridges in RIDGES]
    spectra = [{s: _correlations(each, held) for s, held in validation.items()} for each in maps]
    rho = max(spectra, key=lambda rho: _value(rho, "kept", 0.0))
    doses = [0.0, *doses]
    return {f"{s}/value@{dose:g}": _value(rho, s, dose) for s in validation for dose in doses}


def _correlations(maps: tuple[Tensor, Tensor], inputs: Inputs) -> Float64[Tensor, "2 s"]:
    """Correlations of paired directions in the even and in the odd photos."""
    owner = inputs.pairs.text_to_image()
    image, text = inputs.images[owner].double() @ maps[0].T, inputs.texts[0].double() @ maps[1].T
    halves = []
    for half in (owner % 2 == 0, owner % 2 == 1):
        x, y = (F.normalize(side[half] - side[half].mean(0), dim=0) for side in (image, text))
        halves.append((x * y).sum(0))
    return torch.stack(halves)


def _value(rho: Mapping[str, Float64[Tensor, "2 s"]], shift: str, dose: float) -> float:
    gains = [free_length_gains(half.clamp(min=0), dose) for half in rho["kept"]]
    return (shifted_nats(gains[0], rho[shift][1]) + shifted_nats(gains[1], rho[shift][0])) / 2


def against_clip(rows: pd.DataFrame) -> pd.DataFrame:
    """Scores of every run under every shift beside those of CLIP with the same seed, in points.

    Args:
        rows: of shortcuts.csv; predictions are left out.

    Returns:
        Of `cibr_book.intervals.against_clip` with `shift`, `dose` and `cca_dim`, the latter two 0
        where a method has none.
    """
    settings = pd.DataFrame([*rows["configuration"].map(json.loads)], rows.index)
    runs = rows.assign(**settings.reindex(columns=["dose", "cca_dim"]))
    scores = runs.filter(regex="^(?:kept|removed|reversed)/(?!value)").columns.tolist()
    runs = runs[runs["method"] != "prediction"].fillna({"dose": 0.0, "cca_dim": 0.0})
    return intervals.against_clip(runs, scores, "shift", ["dose", "cca_dim"])


def effects(rows: pd.DataFrame, dose: float) -> pd.DataFrame:
    """What a penalty changes under every shift, as theorem 3 predicts and as measured.

    Args:
        rows: of shortcuts.csv.
        dose: of vMF.

    Returns:
        One row per condition with a prediction and a shift: `condition, shift`; `predicted`, the
        change of log V; `measured`, that of recall from CLIP in points; both are means over seeds;
        and `seeds`, the measured ones by seed.
    """
    of_vmf = against_clip(rows).query(
        "method == 'CIBR vMF' and dose == @dose and score == 'recall'"
    )
    recalls = of_vmf.pivot(index=["condition", "seed"], columns="shift", values="difference")
    values = rows[rows["method"] == "prediction"].set_index(["condition", "seed"])
    table = []
    for condition in values.index.unique("condition"):
        for shift in SHIFTS:
            with_penalty, without = f"{shift}/value@{dose:g}", f"{shift}/value@0"
            expected = np.log(values[with_penalty] / values[without])[condition].mean()
            seeds = recalls[shift][condition].to_numpy()
            table.append([condition, shift, expected, seeds.mean(), seeds])
    return pd.DataFrame(table, columns=["condition", "shift", "predicted", "measured", "seeds"])


def interactions(rows: pd.DataFrame, dose: float) -> pd.DataFrame:
    """How much better a penalty does under a shift than without one: `effects` minus the same with
    the shortcut kept, in the same columns.
    """
    cells = effects(rows, dose).set_index(["condition", "shift"])
    shifted = cells.drop("kept", level="shift")
    kept = cells.xs("kept", level="shift").loc[shifted.index.get_level_values("condition")]
    return (shifted - kept.to_numpy()).infer_objects().reset_index()


def hypothesis_tests(rows: pd.DataFrame) -> pd.DataFrame:
    """The claims of experiments/shortcuts.md, each with its exact test and Holm's correction.

    Args:
        rows: of shortcuts.csv, all of them.

    Returns:
        Of `cibr_book.intervals.outcomes`, with differences in points.
    """
    recall = against_clip(rows).query("score == 'recall'")
    names = ["condition", "method", "dose", "cca_dim", "shift"]
    by_seed = recall.set_index([*names, "seed"]).sort_index()

    def effect(condition: str, method: str, dose=0.0, dim=0, shift="removed", what="difference"):
        return by_seed.loc[(condition, method, dose, dim, shift), what]

    table = []
    for pair in ("water, tint", "child, blur"):
        tied, none = (effect(f"{pair}, {p}", "CIBR vMF", 0.1) for p in ("1", "0.5"))
        table += [("Ha", f"{pair}: worse at 1 than at 0.5", none - tied)]
        table += [("Ha", f"{pair}: a loss at 1", -tied)]
        for condition in (f"{pair}, 1", f"{pair} named, 1"):
            shifts = ("removed", "kept")
            less = [effect(condition, "closed-form CCA", 0.0, 384, shift) for shift in shifts]
            table += [("Hb", f"{condition}: CCA loses less", less[0] - less[1])]
    for towers in ("heads", "from scratch"):
        gain = effect(f"sheets with a gap, {towers}, 0.3", "CIBR vMF", 0.1)
        table += [("Hd", f"sheets with a gap, {towers}: a gain at 0.3", gain)]
    cells = interactions(rows, 0.3)
    measured, gains = np.stack([*cells["seeds"]]), (cells["predicted"] > 0).to_numpy()
    table += [("Hc", "better where predicted", measured[gains].mean(0) - measured[~gains].mean(0))]
    return intervals.outcomes(table)


def beyond_temperature(rows: pd.DataFrame, dose: float) -> pd.DataFrame:
    """What a penalty changes in heads' recall on sheets beyond a temperature of (1 + dose) times
    CLIP's, as planned at the end of experiments/shortcut-controls.yaml.

    Args:
        rows: of shortcuts.csv, those of the plan.
        dose: of vMF, 0.3 (claimed) or 1.

    Returns:
        One row per `condition`, in points of recall: with the shortcut removed, the mean `penalty`
        and `hotter` temperature minus CLIP, and the `difference` of the two with its interval
        `low, high`; the same difference as `kept`; the `claim`, "gain" if the paper's colour is
        weaker than all letters, else "loss"; and its `holm` and `outcome`, see
        `cibr_book.intervals.outcomes`.
    """
    hotter = {0.3: "CLIP, 1.3 times the temperature", 1: "CLIP, twice the temperature"}[dose]
    recall = against_clip(rows).query("score == 'recall'")
    names = ["condition", "method", "dose", "shift", "seed"]
    by_seed = recall.set_index(names)["difference"].sort_index()
    drawn = rows.groupby("condition", sort=False)["configuration"].first().map(json.loads)
    claims, table = [], []
    for condition, settings in drawn.items():
        of = {s: by_seed.loc[condition, "CIBR vMF", dose, s] for s in ("removed", "kept")}
        than = {s: by_seed.loc[condition, hotter, 0.0, s] for s in ("removed", "kept")}
        lead = of["removed"] - than["removed"]
        is_weaker = settings["shortcut"]["named"] ** 0.5 < min(settings["sheets"])
        name, sign = ("gain", 1) if is_weaker else ("loss", -1)
        claims.append((name, condition, sign * lead))
        means = of["removed"].mean(), than["removed"].mean(), (of["kept"] - than["kept"]).mean()
        table.append([condition, name, *means, *mean_interval(lead.to_numpy())])
    columns = ["condition", "claim", "penalty", "hotter", "kept", "difference", "low", "high"]
    tests = intervals.outcomes(claims)[["holm", "outcome"]]
    return pd.DataFrame(table, columns=columns).join(tests)
