"""Readers: image folders, hub sets and shards give the same pairs as other implementations read
from them.
"""

import hashlib
import os
import pickle
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, call

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
from data_files import png, write_classes, write_images, write_metadata, write_parquet, write_shards

from cibr.data import available_splits, load_pairs

CIBR_DATA = os.environ.get("CIBR_DATA")


def greys(pairs) -> list[int]:
    return [image.getpixel((4, 4))[0] for image in pairs.images()]


# Image folders


@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_splits_are_subfolders_with_their_own_metadata(tmp_path, start, end):
    rows = ["file_name,text,group", 'a.png, "a dog, brown",g', "a.png,NA,", "./a.png, NA,"]
    rows += [f'"ü, c.png","two{end}lines, ""quoted""",', "in\\b.png, ein großer Vogel ,", ""]
    images = write_images(tmp_path / "photos" / "train", "a.png", "in/b.png", "ü, c.png")
    write_metadata(images, start + end.join(rows))
    test = write_images(tmp_path / "photos" / "test", "c.png", grey=30)
    row = {"file_name": "./c.png", "caption": ["one", " two ", ""], "year": 2013}
    write_metadata(test, [row])
    train = pickle.loads(pickle.dumps(load_pairs(tmp_path / "photos", "train")))
    assert (train.name, train.split, train.groups.tolist()) == ("photos", "train", [0, 1, 2])
    assert train.keys == ["a.png", "ü, c.png", "in/b.png"]
    assert greys(train) == [100] * 3
    quoted = 'two\nlines, "quoted"'
    assert train.captions == [["a dog, brown", "NA"], [quoted], ["ein großer Vogel"]]
    other = load_pairs(tmp_path / "photos", "test")
    assert (other.keys, other.captions, greys(other)) == (["c.png"], [["one", "two"]], [30])


@pytest.mark.parametrize("name", ["val", "valid", "dev", "VAL", "validation"])
def test_a_validation_split_may_have_its_usual_names(tmp_path, name):
    for part in ("train", name):
        write_metadata(write_images(tmp_path / part, "a.png"), "file_name,text\na.png,x\n")
    write_images(tmp_path / ".ipynb_checkpoints", "metadata.csv")
    assert sorted(available_splits(tmp_path)) == ["train", "validation"]
    for asked in ("validation", "dev"):
        assert load_pairs(tmp_path, asked).split == "validation"


def test_one_metadata_file_may_name_the_split_folders(tmp_path):
    write_images(tmp_path, "train/a.png", "val/b.png")
    write_metadata(tmp_path, "file_name,caption\ntrain/a.png,x\nval/b.png,y\n")
    assert available_splits(tmp_path) == ["train", "validation"]
    found = {split: load_pairs(tmp_path, split).keys for split in ("train", "validation")}
    assert found == {"train": ["train/a.png"], "validation": ["val/b.png"]}


def test_images_that_the_metadata_do_not_name_are_left_out_with_a_warning(tmp_path):
    names = ("a.png", "b.JPG", "in/c.png", ".hidden/d.png", "._a.png", "notes.txt")
    write_metadata(write_images(tmp_path / "train", *names), "file_name,text\na.png,x\n")
    with pytest.warns(UserWarning, match="metadata.csv does not name 2 images .* such as b.JPG"):
        assert load_pairs(tmp_path).keys == ["a.png"]


def test_without_split_folders_a_tenth_is_validation_and_groups_stay_together(tmp_path):
    group = {f"{i}.png": i // 3 if i < 45 else None for i in range(60)}
    rows = [{"file_name": name, "text": name, "group": group[name]} for name in group]
    write_metadata(write_images(tmp_path, *group), rows)
    train, validation = (load_pairs(tmp_path, split) for split in ("train", "validation"))
    assert sorted(train.keys + validation.keys) == sorted(group)
    assert 1 <= len(validation) <= 20
    assert not {group[key] for key in train.keys} & {group[key] for key in validation.keys} - {None}
    for part in (train, validation):
        items = [key if group[key] is None else group[key] for key in part.keys]
        numbers = {item: number for number, item in enumerate(dict.fromkeys(items))}
        assert part.groups.tolist() == [numbers[item] for item in items]


def test_files_added_later_move_no_others_between_splits(tmp_path):
    def splits(names):
        write_metadata(write_images(tmp_path, *names), [dict(file_name=n, text="x") for n in names])
        pairs = [load_pairs(tmp_path, split) for split in available_splits(tmp_path)]
        return {key: part.split for part in pairs for key in part.keys}

    names = [f"{i}.jpg" for i in range(600)]
    assert splits(names[7:8]) == {"7.jpg": "train"}
    assert set(splits(names[7:9]).values()) == {"train", "validation"}
    before = splits(names[:300])
    after = splits(names[::-1])
    assert {name: after[name] for name in before} == before
    assert list(after.values()).count("validation") == 46  # a tenth, by chance


@pytest.mark.parametrize("row", ["gone.png,x", "link.png,x", "b.png, ", "b.png", "broken.png,x"])
@pytest.mark.filterwarnings("ignore:.* does not name")
def test_unusable_images_are_skipped_with_a_warning(tmp_path, row):
    train = write_images(tmp_path / "train", "a.png", "b.png")
    write_metadata(train, f"file_name,text\n{row}\na.png,x\n")
    (train / "broken.png").write_bytes(png()[:50])
    (train / "link.png").symlink_to("nowhere.png")
    name = row.split(",")[0]
    with pytest.warns(UserWarning, match=f"1 unusable samples .*; the first: .*{name}"):
        pairs = load_pairs(tmp_path, max_skipped=2)
    assert (pairs.keys, pairs.captions, greys(pairs)) == (["a.png"], [["x"]], [100])


# The hub


def test_without_metadata_subfolders_are_classes(tmp_path):
    for i, name in enumerate(("red_fox/1.png", "red_fox/0.png", "dog/a.PNG", ".hidden/b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(40 * i))
    (tmp_path / "empty").mkdir()
    assert available_splits(tmp_path) == ["test"]
    pairs = load_pairs(tmp_path, "test")
    assert pairs.keys == ["dog/a.PNG", "red_fox/0.png", "red_fox/1.png"]
    assert pairs.classnames == ["dog", "red fox"] and pairs.labels.tolist() == [0, 1, 1]
    assert pairs.prompts() == [["a photo of a dog."], ["a photo of a red fox."]]
    assert greys(pairs) == [80, 40, 0]
    for name in ("red_fox", "dog"):
        (tmp_path / name).rename(tmp_path / {"red_fox": "train", "dog": "val"}[name])
    with pytest.raises(FileNotFoundError, match="no metadata.jsonl or metadata.csv"):
        available_splits(tmp_path)


def test_an_image_s_digest_is_that_of_its_file_or_of_its_pixels(tmp_path, three):
    photos = write_images(tmp_path / "photos", "train/0.png", "train/1.png")
    (photos / "train" / "1.png").write_bytes(png(30))
    write_metadata(photos, "file_name,text\ntrain/0.png,x\ntrain/1.png,y\n")
    parquet = write_parquet(tmp_path / "parquet", "train", ["x", "y"])
    for place in (photos, three, parquet):
        pairs = load_pairs(place, "train")
        files = [pairs.read(i) for i in (1, 0)]
        files = [file.read_bytes() if isinstance(file, Path) else file for file in files]
        of_files = [hashlib.sha256(file).hexdigest() for file in files]
        assert pairs.subset([1, 0]).image_digests() == of_files and of_files[0] != of_files[1]
        of_pixels = replace(pairs, read=None).image_digests()
        assert len({*of_pixels}) == len(pairs) and not {*of_pixels} & {*of_files}


def test_a_hub_set_gives_captions_groups_and_images_on_demand(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    texts = [["a dog", " a brown dog "], ["a cat"], ["a bird", "NA"]]
    groups = ["row 1", None, " row 1 "]  # not that of the second row, whose key is its number
    folder = write_parquet(tmp_path / "set", "train", texts, "captions", group=groups)
    write_parquet(folder, "validation", texts[:2], "captions", group=["x", "x"])
    assert available_splits(folder) == ["train", "validation"]
    pairs = pickle.loads(pickle.dumps(load_pairs(folder)))
    assert pairs.captions == [["a dog", "a brown dog"], ["a cat"], ["a bird", "NA"]]
    assert (pairs.name, pairs.split, pairs.groups.tolist()) == ("set", "train", [0, 1, 0])
    assert pairs.keys == ["row 0", "row 1", "row 2"]
    assert greys(pairs) == [0, 10, 20]


def test_a_hub_set_may_name_files_and_broken_ones_are_skipped(tmp_path, monkeypatch):
    write_images(tmp_path, "a.png", grey=7)
    (tmp_path / "b.png").write_bytes(b"no image")
    a, b = (str(tmp_path / name) for name in ("a.png", "b.png"))
    data = datasets.Dataset.from_dict({"image": [b, a, None, a], "text": ["x", " ", "y", "2013"]})
    loaded = Mock(return_value=data.cast_column("image", datasets.Image()))
    monkeypatch.setattr(datasets, "get_dataset_split_names", {"owner/photos": ["training"]}.get)
    monkeypatch.setattr(datasets, "load_dataset", loaded)
    with pytest.warns(UserWarning, match="train of photos: 3 .*: row 1 of photos has no text"):
        pairs = load_pairs("owner/photos", max_skipped=3)
    loaded.assert_called_once_with("owner/photos", split="training")
    assert (pairs.name, pairs.captions, pairs.groups) == ("photos", [["2013"]], None)
    assert greys(pairs) == [7]


# Shards


@pytest.fixture
def three(tmp_path):
    first = [("s0.jpg", png(10, "JPEG")), ("s0.txt", "a dog\na brown dog"), ("about.json", "{}")]
    first += [("s1.webp", png(20, "WEBP")), ("s1.txt", " a cat \r\n\n"), ("s1.seg.png", b"mask")]
    second = [("in/s2.txt", "\ufeffein Vogel, größer"), ("in/s2.PNG", png(30))]
    write_images(tmp_path / "wds_three", ".checkpoints/nshards.txt")
    return write_shards(tmp_path / "wds_three", first, second)


def test_samples_come_in_the_order_of_the_shards_with_texts_stripped(three):
    pairs = pickle.loads(pickle.dumps(load_pairs(three)))
    assert (pairs.name, pairs.split, pairs.labels) == ("three", "train", None)
    assert available_splits(three) == ["train"]
    assert pairs.keys == ["s0", "s1", "in/s2"]
    assert pairs.captions == [["a dog", "a brown dog"], ["a cat"], ["ein Vogel, größer"]]
    assert greys(pairs) == pytest.approx([10, 20, 30], abs=3)  # JPEG and WebP lose a little


def test_more_than_ten_shards_come_in_the_order_of_their_numbers(tmp_path):
    shards = [[(f"s{n}.png", png(10 * n)), (f"s{n}.txt", f"text {n}")] for n in range(12)]
    pairs = load_pairs(write_shards(tmp_path / "set", *shards))
    assert pairs.texts() == [f"text {n}" for n in range(12)]
    assert greys(pairs) == [10 * n for n in range(12)]


def test_class_sets_give_labels_names_and_prompts(tmp_path):
    pairs = load_pairs(write_classes(tmp_path / "set"), "validation")
    assert torch.equal(pairs.labels, torch.tensor([1, 0]))
    assert pairs.captions == [["sea lion"], ["cat"]]
    assert pairs.templates == ["a photo of a {c}.", "a {c}, {small}"]
    assert pairs.prompts() == [
        ["a photo of a cat.", "a cat, {small}"],
        ["a photo of a sea lion.", "a sea lion, {small}"],
    ]
    (tmp_path / "set" / "zeroshot_classification_templates.txt").unlink()
    assert load_pairs(tmp_path / "set", "validation").templates is None


@pytest.mark.parametrize(
    "bad", [{"png": b"no", "cls": "0"}, {"png": png(), "cls": "7"}, {"png": png()}, {"cls": "0"}]
)
def test_labels_stay_with_their_images_when_an_unusable_one_is_skipped(tmp_path, bad):
    members = [(f"c.{suffix}", content) for suffix, content in bad.items()]
    with pytest.warns(UserWarning, match="1 unusable samples .*; the first: .*'c'"):
        pairs = load_pairs(write_classes(tmp_path / "set", *members), "val", max_skipped=1)
    assert (pairs.keys, pairs.labels.tolist(), greys(pairs)) == (["a", "b"], [1, 0], [10, 20])


def test_a_shard_cut_short_anywhere_is_named(three):
    shard = three / "train" / "0.tar"
    whole = shard.read_bytes()
    for size in range(0, len(whole.rstrip(b"\0")), 300):
        shard.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"0\.tar is damaged"):
            load_pairs(three)


def test_the_hub_gives_what_a_folder_of_the_same_layout_gives(three, monkeypatch):
    serve = Mock(return_value=str(three))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve)
    remote, local = load_pairs("owner/wds_three"), load_pairs(three)
    assert serve.call_args_list == [
        call("owner/wds_three", repo_type="dataset", allow_patterns=patterns)
        for patterns in (["*.txt"], ["*.txt", "train/*"])
    ]
    assert (remote.name, remote.keys, remote.captions) == (local.name, local.keys, local.captions)


@pytest.mark.data
@pytest.mark.skipif(not CIBR_DATA, reason="CIBR_DATA is unset")
@pytest.mark.filterwarnings("ignore:.*shardshuffle:UserWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("name", ["flickr8k", "dtd10"])
def test_images_labels_captions_and_prompts_are_those_that_clip_benchmark_loads(name):
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    folder = Path(CIBR_DATA) / f"wds_{name}"
    theirs = builder.build_wds_dataset(name, np.asarray, split="test", data_dir=str(folder))
    pairs = load_pairs(name, "test")
    assert (pairs.classnames, pairs.templates) == (theirs.classes, theirs.templates)
    for i, (image, target) in zip(range(200), theirs, strict=False):
        assert i % 25 or np.array_equal(image, pairs.image(i)), pairs.keys[i]
        if pairs.labels is None:
            assert pairs.captions[i] == [text.strip() for text in target]
        else:
            assert (pairs.labels[i], pairs.captions[i]) == (target, [theirs.classes[target]])
