"""`cibr compare`: equal trials, paired differences, advice, a model to search with."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import TEXTS, noise_pairs, picture

from cibr import DualEncoder, compare, load_pairs
from cibr._report import report, shown_table
from cibr.compare import RECIPES, SEARCH, Bench, compare_recipes
from cibr.metrics import retrieval_recalls
from cibr.models.features import embed_pairs, prepare
from cibr.train.trainer import CIBRTrainer


@pytest.fixture
def photos(tmp_path, monkeypatch, build):
    """A folder of small images, to be compared over small towers."""
    monkeypatch.setattr(compare, "_LEAST", 8)
    monkeypatch.setattr(
        compare,
        "build_model",
        lambda config, pairs: build("frozen dual" if config.towers else "frozen"),
    )
    monkeypatch.setattr("cibr.models.features.cache_folder", lambda: tmp_path / "cache")
    start = 0
    for split, n in dict(train=40, validation=12, test=14).items():
        folder = tmp_path / "photos" / split
        folder.mkdir(parents=True)
        lines = ["file_name,text"]
        for i in range(n):
            picture(start + i).save(folder / f"{i}.png")
            lines.append(f"{i}.png,{TEXTS[(start + i) % len(TEXTS)]} {start + i}")
        (folder / "metadata.csv").write_text("\n".join(lines))
        start += n
    return str(tmp_path / "photos")


def test_it_compares_saves_the_winner_and_reuses_what_is_trained(
    photos, tmp_path, monkeypatch, clip_folder
):
    few = dict(n_trials=2, n_seeds=1, pretrained=[clip_folder], unpaired=photos)
    found = compare_recipes(photos, tmp_path / "out", **few)
    names = [*RECIPES, f"{clip_folder} as it is"]
    names += [f"{clip_folder}: {recipe}" for recipe in ("CCA", "CLIP", "CLIP+CCA")]
    assert list(found.table["recipe"].unique()) == names
    table = pd.read_csv(tmp_path / "out" / "compare.csv").set_index(["recipe", "metric"])
    assert table.loc["CLIP", "difference"].eq(0).all()
    pretrained = DualEncoder.from_pretrained(clip_folder)
    test = load_pairs(photos, "test")
    images, texts = pretrained.embed_images(test.images()), pretrained.embed_texts(test.texts())
    recalls = retrieval_recalls(images, texts, *test.retrieval_targets())
    values = table.loc[f"{clip_folder} as it is", "value"]
    assert values[[*recalls]].to_dict() == pytest.approx(recalls)
    assert values["mean"] == pytest.approx(np.mean([*recalls.values()]))
    gaps = table["value"] - table.loc["CLIP", "value"].reindex(table.index, level="metric")
    assert table["difference"].tolist() == pytest.approx(gaps.tolist(), abs=1e-9)
    assert (table["low"] <= table["difference"]).all() and (table["low"] < table["high"]).any()

    def saved() -> dict[str, float]:
        """Recalls of the saved model."""
        model = DualEncoder.from_pretrained(tmp_path / "out" / "model")
        return retrieval_recalls(
            *embed_pairs(model, prepare(model, test)), *test.retrieval_targets()
        )

    won = saved()
    assert table.loc[found.winners[SEARCH], "value"][[*won]].to_dict() == pytest.approx(won)
    page = (tmp_path / "out" / "report.html").read_text()
    assert found.advice.replace("'", "&#x27;") in page and page.count("<img") > 40

    def train(_):
        raise AssertionError("it is trained already")

    monkeypatch.setattr(CIBRTrainer, "train", train)
    again = compare_recipes(photos, tmp_path / "out", **few)
    pd.testing.assert_frame_equal(again.table, found.table)
    of = {name: table.loc[name, "value"][[*won]].to_dict() for name in RECIPES}
    other = next(name for name in RECIPES if of[name] != pytest.approx(won))
    compare_recipes(photos, tmp_path / "out", **few, keep=other)
    assert saved() == pytest.approx(of[other])
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"those of {other}, the saved model" in page and other != found.winners[SEARCH]
    found_of, apart = compare._comparison, found.winners | {SEARCH: other}
    with monkeypatch.context() as patch:  # a recipe that wins in search alone is saved
        patch.setattr(compare, "_comparison", lambda of: found_of(of)._replace(winners=apart))
        compare_recipes(photos, tmp_path / "out", **few)
    assert saved() == pytest.approx(of[other])
    of_towers = table.loc[f"{clip_folder}: CLIP", "value"][[*won]]
    compare_recipes(photos, tmp_path / "out", **few, keep=f"{clip_folder}: CLIP")
    assert of_towers.to_dict() == pytest.approx(saved()) and of_towers.to_dict() != of[other]
    with pytest.raises(ValueError, match="unknown row to keep 'CCA'"):
        compare_recipes(photos, tmp_path / "out", recipes=["CCA-start"], keep="CCA")
    with pytest.raises(AssertionError, match="trained already"):
        compare_recipes(photos, tmp_path / "out", n_trials=3, n_seeds=1)
    stray = tmp_path / "out" / "model" / "stray.json"  # of a winner of another kind
    stray.write_text("{}")
    compare_recipes(photos, tmp_path / "out", **few)
    assert not stray.exists()
    metadata, photo = (tmp_path / "photos" / "train" / n for n in ("metadata.csv", "7.png"))
    heads = max((tmp_path / "out" / "heads").iterdir(), key=lambda file: file.stat().st_size)
    group = metadata.read_text().replace(",text", ",text,group").replace(" 0\n", " 0,a\n")
    damage = [
        lambda: heads.write_bytes(heads.read_bytes()[:50]),
        lambda: picture(99).save(photo),
        lambda: metadata.write_text(group.replace(" 1\n", " 1,a\n")),
    ]
    for change in damage:
        change()
        with pytest.raises(AssertionError, match="trained already"):
            compare_recipes(photos, tmp_path / "out", **few)


def test_unpaired_images_with_held_out_texts_are_left_out():
    held, unpaired = noise_pairs(9, split="test"), noise_pairs(30)
    with pytest.warns(UserWarning, match="9 of noise have texts of held-out images"):
        left = compare._not_held_out(unpaired, [held])
    assert left.keys == unpaired.keys[9:]
    few = pytest.raises(ValueError, match="noise has 1 images .*: self-training needs two")
    with few, pytest.warns(UserWarning, match="29 of noise"):
        compare._not_held_out(unpaired, [noise_pairs(29, split="test")])


def test_the_report_shows_a_text_of_several_images_once(build):
    model, pairs = build("frozen"), noise_pairs(12)
    captions = [["a cup"] if i < 3 else own for i, own in enumerate(pairs.captions)]
    inputs = prepare(model, replace(pairs, captions=captions))
    entry = compare._Entry([compare.image_values(model, inputs)] * 2, model, "")
    found = compare._comparison({"CCA": entry, "CLIP": entry})
    page = report(found.advice, found.table, "CLIP", model, inputs)
    assert "The searches are those of CLIP, the saved model." in page
    best, worst = page.split("<h2>Worst searches")
    assert best.count("first match at rank") == worst.count("first match at rank") == 10
    assert best.count("a cup (") <= 1 >= worst.count("a cup (")


def test_the_table_shows_recalls_and_the_difference_in_search():
    rows = [
        (name, metric, value, value - 0.3, value - 0.32, value - 0.27, "")
        for name, search, mean in (("CLIP", 0.3, 0.3), ("CCA", 0.35, 0.4))
        for metric, value in (("text_to_image_mean", search), ("mean", mean))
    ]
    columns = ["recipe", "metric", "value", "difference", "low", "high", "at_end"]
    shown = shown_table(pd.DataFrame(rows, columns=columns))
    assert shown.loc["CCA"].tolist() == [35.0, 40.0, "+5.0 [+3.0, +8.0]"]
    assert shown.columns.tolist() == ["t→i mean", "mean", "search minus CLIP"]


def test_scores_of_joined_heads_are_the_mean_of_theirs(build):
    bench = object.__new__(Bench)
    bench.base = build("frozen")
    states = [bench.model([{}]).state_dict() for _ in range(2)]
    pixels, tokens = bench.base.preprocess([picture(0)]), bench.base.tokenize(TEXTS[:3])
    cosines = []
    for parts in ([states[0]], [states[1]], states):
        model = bench.model(parts)
        image, texts = model.encode_images(pixels).features, model.encode_texts(*tokens).features
        cosines.append(image @ texts.T)
    assert torch.allclose(cosines[2], (cosines[0] + cosines[1]) / 2, atol=1e-6)


def test_the_highest_wins_by_direction_of_equals_the_simplest():
    generator = np.random.default_rng(0)
    base = (generator.random((3, 200)) < 0.5).astype(float)
    better = np.maximum(base, generator.random((3, 200)) < 0.25)
    erratic = np.roll(better, 1, 1)
    erratic[:, :9] = 1  # a higher mean than the better one, by chance

    def recipe(search, captions):
        of = {"text_to_image_mean": search, "image_to_text_mean": captions}
        values = [{name: value[seed] for name, value in of.items()} for seed in range(3)]
        return compare._Entry(values, None, "")

    entries = {"simple": recipe(base, base), "CLIP": recipe(base, base)}
    equal = compare._comparison(entries)
    assert {*equal.winners.values()} == {"simple"}
    line = "use simple: +0.0 [+0.0, +0.0] points of recall from CLIP heads."
    assert equal.advice.count(line) == 2 and "simpler" not in equal.advice
    rounded = entries | {"rounded": recipe(base + 1e-16, base * (1 + 1e-15))}
    assert compare._comparison(rounded).winners == equal.winners
    entries |= {"search": recipe(better, base), "more": recipe(better, base)}
    entries |= {"erratic": recipe(erratic, base)}
    found = compare._comparison(entries)
    assert found.winners == {"text_to_image_mean": "erratic", "image_to_text_mean": "simple"}
    search, captions = found.advice.split(" For ")
    assert search.startswith("For searching images by text use erratic: +")
    assert search.endswith("CLIP heads; not detectably better than search, which is simpler.")
    assert captions.startswith("finding texts for images use simple: +0.0 [")
    entries["CLIP"] = recipe(erratic, base)
    assert "images by text use CLIP. For finding" in compare._comparison(entries).advice


def test_the_last_part_of_a_sum_is_tuned_beside_the_best_of_the_first(monkeypatch):
    scores, tried = iter([0.1, 0.3, 0.2]), []
    bench = object.__new__(Bench)
    bench.validation = SimpleNamespace(pairs=noise_pairs(3))
    monkeypatch.setattr(Bench, "recipe", lambda self, name, best, seed: tried.append(best))
    monkeypatch.setattr(compare, "embed_pairs", lambda model, inputs: ())
    monkeypatch.setattr(compare, "retrieval_recalls", lambda *_: {"recall": next(scores)})
    clip, cca = (compare.draws(RECIPES[name].grid, 3) for name in ("CLIP", "CCA"))
    best = {"CLIP": clip[2], "CCA": cca[0]}
    assert bench.tuned("CLIP+CCA", 3, best) == {"CLIP": clip[2], "CCA": cca[1]} == tried[1]


def test_trials_start_at_the_first_values_and_share_those_of_shared_settings():
    clip, anchor = (compare.draws(RECIPES[name].grid, 8) for name in ("CLIP", "CCA-anchor"))
    assert clip[0] == {name: values[0] for name, values in RECIPES["CLIP"].grid.items()}
    assert len({repr(point) for point in clip}) == len(anchor) == 8
    for name in ("temperature", "batch_size"):
        assert [point[name] for point in clip] == [point[name] for point in anchor]
    assert len(compare.draws(RECIPES["CCA"].grid, 40)) == 12


def test_settings_at_the_end_of_their_range_are_named():
    grid = RECIPES["CCA-anchor"].grid
    middle = {name: sorted(values)[len(values) // 2] for name, values in grid.items()}
    middle["cca_ridges"] = (10.0, 1.0)
    assert compare._at_end(middle, grid) == ""
    edge = {"cca_ridges": (10.0, 0.3), "beta": 1.0}
    assert compare._at_end(middle | edge, grid) == "cca_ridges, beta"


def test_photos_are_held_out_by_group_and_too_few_are_refused(photos, tmp_path, monkeypatch):
    flat = tmp_path / "flat"
    flat.mkdir()
    lines = ["file_name,text,group"]
    for i in range(60):
        picture(i).save(flat / f"{i}.png")
        lines.append(f"{i}.png,{TEXTS[i % 56]} {i},item {i // 3}")
    (flat / "metadata.csv").write_text("\n".join(lines))
    held_out = load_pairs(flat, "validation")
    splits = compare.compared_splits(str(flat))
    assert set(held_out.keys) <= set(splits[2].keys)  # no command trains on another's
    keys = [{int(key.split(".")[0]) // 3 for key in part.keys} for part in splits]
    assert sum(map(len, splits)) == 60 and sum(map(len, keys)) == 20
    assert [part.split for part in splits] == ["train", "validation", "test"]
    assert len(splits[1]) >= 8 and len(splits[2]) >= 8
    assert splits[2].image(0).tobytes() == picture(int(splits[2].keys[0][:-4])).tobytes()
    assert [len(part) for part in compare.compared_splits(photos)] == [40, 12, 14]
    monkeypatch.setattr(compare, "_LEAST", 16)
    with pytest.raises(ValueError, match="flat has 60 images: give 64 or more"):
        compare.compared_splits(str(flat))
    with pytest.raises(ValueError, match="66 images, 14 of them .* no test split of fewer than 16"):
        compare_recipes(photos, tmp_path / "unused")
    coarse = [re.sub(r"item \d+", f"item {i // 40}", line) for i, line in enumerate(lines)]
    (flat / "metadata.csv").write_text("\n".join(coarse))
    monkeypatch.setattr(compare, "_LEAST", 12)
    with pytest.raises(ValueError, match="images of flat are left for training, 12 are needed"):
        compare.compared_splits(str(flat))


def test_a_comparison_of_nothing_or_into_the_photos_is_refused(photos, tmp_path):
    for n in (0, 1001):
        with pytest.raises(ValueError, match=f"n_trials is {n}: give a whole number from 1"):
            compare_recipes(photos, tmp_path / "out", n_trials=n)
    with pytest.raises(ValueError, match="pretrained is a string: give a list of names"):
        compare_recipes(photos, tmp_path / "out", pretrained="clip")
    with pytest.raises(ValueError, match="output_dir .* is within the data set's folder"):
        compare_recipes(photos, f"{photos}/out")
    for name in ("model", "heads"):
        (tmp_path / "mine" / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="mine' has other files, or is one: choose another"):
        compare_recipes(photos, tmp_path / "mine")
    assert (tmp_path / "mine" / "model").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file' has other files, or is one: choose another"):
        compare_recipes(photos, tmp_path / "file")
    Path(photos, "test", "3.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="test of photos: 1 of 14 samples cannot be used"):
        assert len(compare.compared_splits(photos)[2]) == 13


def test_texts_of_validation_are_left_out_of_self_training(photos, tmp_path):
    few = dict(n_trials=1, n_seeds=1, unpaired=f"{photos}/validation")
    refused = pytest.raises(ValueError, match="has 0 images without texts of held-out images")
    with refused, pytest.warns(UserWarning, match="of validation have texts of held-out"):
        compare_recipes(photos, tmp_path / "out", **few)


def test_a_repeated_part_of_a_sum_has_another_seed(monkeypatch, build):
    bench, seeds = object.__new__(Bench), []
    monkeypatch.setattr(Bench, "heads", lambda self, _, seed: seeds.append(seed) or {"own": {}})
    monkeypatch.setattr(Bench, "model", lambda self, states: build("tiny"))
    for seed in range(3):
        bench.recipe("CLIP+CLIP", {"CLIP": {}}, seed)
    assert len({*seeds}) == 6
