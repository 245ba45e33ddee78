"""The map of the world between: gains and winners of made-up rows, and the page that shows them."""

import json
import re

import numpy as np
import pandas as pd
import pytest

from cibr_book.experiments.tables import chosen, read_table
from cibr_book.pages.between_explorer import as_page, cells, in_words
from cibr_book.pages.between_figures import (
    beside_ablation,
    gain_maps,
    gains,
    information_maps,
    predictions,
    winner_map,
    winners,
)


def made_up(effects, n_seeds=8):
    """Rows in which a method is so many points above CLIP, by cell and method."""
    random = np.random.default_rng(0)
    rows = []
    for (pairs, nuisance), by_method in effects.items():
        level = random.normal(50, 5, n_seeds)
        for method, gain in ({"CLIP": 0.0} | by_method).items():
            noise = 0 if method == "CLIP" else random.normal(0, 0.3, n_seeds)
            row = {"pairs": pairs, "nuisance": nuisance, "tower": "linear", "method": method}
            row |= {"shared_nats_at_0.01": 5.0, "residual_nats_at_0.01": 4.0}
            row |= {"settings": '{"rate": 0.01, "kappa": Infinity}'}
            scores = pd.DataFrame({"seed": range(n_seeds), "test_recall": level + gain + noise})
            rows.append(scores.assign(**row))
    return pd.concat(rows, ignore_index=True)


EFFECTS = {
    (64, 0.5): {"ridge CCA": 8.0, "CIBR vMF": 2.0, "CLIP, untuned": 20.0},
    (64, 4.0): {"ridge CCA": -6.0, "CIBR vMF": 2.0, "CLIP, untuned": -20.0},
    (4096, 0.5): {"ridge CCA": -6.0, "CIBR vMF": 0.0, "CLIP, untuned": -20.0},
}


@pytest.fixture
def rows():
    return made_up(EFFECTS)


def test_gains_are_mean_differences_from_clip_of_the_same_seed(rows):
    table = gains(rows)
    assert len(table) == 9 and "CLIP" not in set(table["method"])
    for (pairs, nuisance), effects in EFFECTS.items():
        part = rows[(rows["pairs"] == pairs) & (rows["nuisance"] == nuisance)]
        by_seed = part.pivot(index="seed", columns="method", values="test_recall")
        own = table[(table["pairs"] == pairs) & (table["nuisance"] == nuisance)]
        for row in own.itertuples():
            difference = (by_seed[row.method] - by_seed["CLIP"]).mean()
            assert (
                row.mean == pytest.approx(difference) == pytest.approx(effects[row.method], abs=0.5)
            )
            assert row.low < row.mean < row.high and row.n == 8
            assert row.value == pytest.approx(by_seed[row.method].mean())
    assert table["q_value"].notna().sum() == 6  # untuned CLIP is no contender
    assert (table["q_value"].dropna() >= table["p_value"][table["q_value"].notna()]).all()


def test_nonlinear_methods_are_compared_with_nonlinear_clip(rows):
    higher = rows.assign(tower="nonlinear", test_recall=rows["test_recall"] + 30)
    table = gains(pd.concat([rows, higher]))
    both = [
        table.loc[table["tower"] == tower, "mean"].to_numpy() for tower in table["tower"].unique()
    ]
    assert len(both) == 2 and np.allclose(*both)
    assert table.loc[table["tower"] == "nonlinear", "q_value"].isna().all()


def test_the_winner_has_the_largest_certain_gain_and_is_clip_where_none_is_certain(rows):
    best = winners(gains(rows)).set_index(["pairs", "nuisance"])
    assert best["method"].to_dict() == {
        (64, 0.5): "ridge CCA",
        (64, 4.0): "CIBR vMF",
        (4096, 0.5): "CLIP",
    }
    assert best.loc[(4096, 0.5), "mean"] == 0
    assert best.loc[(64, 0.5), "mean"] == pytest.approx(8, abs=0.5)


def test_gains_of_another_column_are_its_own(rows):
    doubled = rows.assign(residual=2 * rows["test_recall"])
    plain, other = gains(rows), gains(doubled, "residual")
    assert np.allclose(2 * plain["mean"], other["mean"])


def test_an_uncertain_gain_wins_nowhere():
    rows = made_up({(64, 0.5): {"CIBR vMF": 0.0}, (64, 1.0): {"CIBR vMF": 0.0}}, n_seeds=3)
    assert winners(gains(rows))["method"].tolist() == ["CLIP", "CLIP"]


def test_the_simplest_of_equally_good_methods_wins():
    three = {"CIBR vMF": 6.0, "CLIP, CCA start": 5.9, "ridge CCA": 3.0}
    effects = {(64, 0.5): three, (64, 1.0): three | {"CIBR vMF": 8.0}}
    effects |= {(64, 2.0): {"CIBR vMF": 0.0}, (64, 4.0): three | {"ridge CCA": 5.8}}
    best = winners(gains(made_up(effects)))["method"].tolist()
    assert best == ["CLIP, CCA start", "CIBR vMF", "CLIP", "ridge CCA"]


def test_a_gain_below_half_a_point_wins_nowhere():
    rows = made_up({(64, 0.5): {"CIBR vMF": 0.0}})
    level = rows.loc[rows["method"] == "CLIP"].set_index("seed")["test_recall"]
    of = rows["method"] == "CIBR vMF"
    rows.loc[of, "test_recall"] = [level[i] + 0.3 + 0.01 * i for i in rows.loc[of, "seed"]]
    table = gains(rows)
    assert table["q_value"].max() < 0.05 and table["mean"].tolist() == [pytest.approx(0.335)]
    assert winners(table)["method"].tolist() == ["CLIP"]


def test_maps_have_most_pairs_at_the_top_and_bold_certain_gains(rows):
    table = gains(rows)
    axis = winner_map(winners(table))
    assert [label.get_text() for label in axis.get_yticklabels()] == ["4,096", "64"]
    texts = [text.get_text() for text in axis.texts]
    assert sum(text.startswith("+") for text in texts) == 2
    (axis,) = gain_maps(table, {"CCA": ("linear", "ridge CCA")})
    weights = {text.get_text()[0]: text.get_fontweight() for text in axis.texts}
    assert weights == {"-": "bold", "+": "bold"}


def test_a_place_on_the_map_lies_between_the_cells_around_it(rows):
    places = pd.DataFrame({"data": "photos", "fraction": 1, "pairs": [512], "nuisance": [2**0.5]})
    (line,) = winner_map(winners(gains(rows)), places).lines
    assert line.get_xydata().tolist() == [[pytest.approx(1.0), pytest.approx(1.0)]]


def test_predictions_are_interpolated_in_logarithms_and_end_with_the_map():
    effects = {(n, s): {"ridge CCA": g} for n, s, g in ((64, 1, 8), (64, 4, 0), (256, 1, 4))}
    table = gains(made_up(effects | {(256, 4): {"ridge CCA": 0.0}}))
    exact = {(row.pairs, row.nuisance): row.mean for row in table.itertuples()}
    places = pd.DataFrame({"data": "photos", "pairs": [128, 64, 10_000], "nuisance": [2, 1, 0.5]})
    found = predictions(table, places.assign(fraction=1.0))["predicted"]
    middle = sum(exact.values()) / 4
    assert found.tolist() == pytest.approx([middle, exact[64, 1], exact[256, 1]])


def test_predictions_stand_beside_the_ablations_differences():
    effects = {(n, s): {"ridge CCA": 5.0, "CIBR vMF": 1.0} for n in (64, 4096) for s in (0.5, 2)}
    places = pd.DataFrame({"data": ["photos", "photos", "glyphs"], "fraction": [1.0, 0.1, 0.3]})
    predicted = predictions(gains(made_up(effects)), places.assign(pairs=256, nuisance=1.0))
    rows = read_table()
    table = beside_ablation(predicted, rows).set_index(["condition", "method"])
    by_place = "Flickr8k, 10 % of the pairs"
    assert {(by_place, "ridge CCA"), ("Flickr8k", "CIBR vMF")} <= set(table.index)
    best = chosen(rows[rows["condition"] == by_place]).set_index("seed")
    names = ("image_to_text", "text_to_image")
    recalls = 100 * best[[f"mini/flickr8k/{name}_recall@1" for name in names]].mean(axis=1)
    sides = [recalls[best["method"] == name] for name in ("closed-form CCA", "CLIP")]
    row = table.loc[(by_place, "ridge CCA")]
    assert row["difference"] == pytest.approx((sides[0] - sides[1]).mean())
    assert row["low"] < row["difference"] < row["high"]
    assert row["predicted"] == pytest.approx(5, abs=0.5)


def test_information_is_drawn_for_every_run(rows):
    axes = information_maps(rows, [(64, 0.5), (64, 4.0)], 0.01)
    assert [len(line.get_xdata()) for line in axes[0].lines] == [8, 8, 8, 8]


def test_the_page_holds_the_numbers_for_the_script_and_as_a_table(rows, tmp_path):
    rows.to_csv(tmp_path / "map.csv", index=False)
    page = as_page(tmp_path / "map.csv")
    data = json.loads(re.search(r'json" id="between-data">(.*?)</script>', page)[1])
    assert data == json.loads(json.dumps(cells(rows)))
    assert data["pairs"] == [64, 4096] and data["nuisances"] == [0.5, 4.0]
    assert [cell["best"] for cell in data["cells"]] == ["ridge CCA", "CIBR vMF", "CLIP"]
    clip, cca = data["cells"][0]["methods"][:2]
    assert clip["name"] == "CLIP" and clip["gain"] is None and clip["settings"] == "rate 0.01"
    assert cca["recall"] - clip["recall"] == pytest.approx(cca["gain"], abs=0.011)
    assert page.count("<tr>") + page.count("<tr ") == 1 + 3


def test_settings_without_effect_are_left_out_of_the_words():
    assert in_words('{"temperature": 0.5, "kappa": Infinity, "steps": 1000}') == (
        "temperature 0.5, steps 1000"
    )
