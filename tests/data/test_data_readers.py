"""Readers: folders, tables and shards give the same pairs as other implementations read from them,
say what cannot be used, and hold out the same images.
"""

import csv
import hashlib
import io
import os
import pickle
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, call

import datasets
import huggingface_hub
import numpy as np
import pytest
from data_files import encoded, png, write_classes, write_images, write_metadata, write_shards
from helpers import picture, write_photos
from PIL import Image

from cibr.data import available_splits, load_pairs

CIBR_DATA = os.environ.get("CIBR_DATA")


def greys(pairs) -> list[int]:
    return [image.getpixel((4, 4))[0] for image in pairs.images()]


# Image folders

ROWS = [  # file, caption, group
    ("a.png", "a dog, brown; large", "g"),
    ("a.png", "NA", ""),
    ("./a.png", " NA ", ""),
    ("ü, c.png", 'two\nlines, "quoted"', " g"),
    ("in\\b.png", "null", ""),
]


@pytest.mark.parametrize("separator", ",;\t")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_metadata_have_any_separator_and_columns_in_any_case(tmp_path, separator, encoding):
    folder = write_images(tmp_path / "photos", "a.png", "in/b.png", "ü, c.png")
    text = io.StringIO()
    names = ["File Name", " Caption", "GROUP"]
    csv.writer(text, delimiter=separator).writerows([names, *ROWS, ["", "", ""]])
    (folder / "metadata.csv").write_bytes(text.getvalue().encode(encoding))
    pairs = pickle.loads(pickle.dumps(load_pairs(folder, "train+validation")))
    assert (pairs.name, pairs.split) == ("photos", "train")
    assert pairs.keys == ["a.png", "ü, c.png", "in/b.png"]
    assert pairs.captions == [["a dog, brown; large", "NA"], ['two\nlines, "quoted"'], ["null"]]
    assert pairs.groups[0] == pairs.groups[1] != pairs.groups[2]
    assert greys(pairs) == [100] * 3


@pytest.mark.parametrize("name", ["val", "valid", "dev", "VAL", "validation"])
def test_splits_are_subfolders_with_metadata_or_named_in_one_metadata_file(tmp_path, name):
    for part in ("train", name):
        write_metadata(write_images(tmp_path / part, "a.png"), "file_name,text\na.png,x\n")
    write_images(tmp_path / ".ipynb_checkpoints", "metadata.csv")
    assert sorted(available_splits(tmp_path)) == ["train", "validation"]
    assert load_pairs(tmp_path, "dev").split == "validation"
    for part in ("train", name):
        (tmp_path / part / "metadata.csv").unlink()
    write_metadata(tmp_path, f"file_name,text\ntrain/a.png,x\n{name}/a.png,y\n")
    assert load_pairs(tmp_path, "validation").keys == [f"{name}/a.png"]


FAULTS = {  # the rows, and what is said of them
    "gone.png,x\nnowhere.png,x\n" + "a" * 5000 + ",x": "3 no such file .gone.png, nowhere.png, aaa",
    "cut.jpg,x": "1 cut short .cut.jpg",
    "a.heic,x": "1 HEIC, HEIF or AVIF: save as JPEG .a.heic",
    "eps.png,x": "1 not an image of BMP, .*, or damaged .eps.png",
    "link.png,x\n../outside.png,x": "2 outside the folder, by name or by link .link.png, ../out",
    "b.png, \nc.png,": "2 no text .b.png, c.png",
    "b.png,a dog, brown": "1 rows with too many fields, quote texts with ',' .row 202",
}


@pytest.mark.parametrize("rows", FAULTS, ids=list(FAULTS.values()))
def test_unusable_samples_are_counted_by_reason_and_a_tenth_is_refused(tmp_path, rows):
    folder = write_photos(tmp_path / "photos", 200, rows)
    write_images(folder, "b.png", "c.png")
    write_images(tmp_path, "outside.png")
    for name, file in {"link": "../outside", "nowhere": "gone"}.items():
        (folder / f"{name}.png").symlink_to(f"{file}.png")
    (folder / "cut.jpg").write_bytes(encoded(picture(1), "JPEG")[:1500])
    (folder / "eps.png").write_bytes(encoded(Image.new("RGB", (2, 2)), "EPS"))
    (folder / "a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    n = int(FAULTS[rows][0])
    message = f"photos: {n} of {200 + n} samples cannot be used: {FAULTS[rows]}"
    with pytest.warns(UserWarning, match=message + ".*They are left out"):
        assert len(load_pairs(folder, "train+validation")) == 200
    write_metadata(folder, f"file_name,text\n0.png,x\n{rows}\n")
    with pytest.raises(ValueError, match=f"{n} of {1 + n} samples cannot be used: .*Mend or"):
        load_pairs(folder)


def splits_of(folder) -> dict[str, str]:
    parts = [load_pairs(folder, split) for split in ("train", "validation")]
    return {key: part.split for part in parts for key in part.keys}


def test_later_additions_hold_out_no_earlier_image_and_equal_photos_stay_together(tmp_path):
    before = splits_of(write_photos(tmp_path, 150))
    assert 20 <= list(before.values()).count("validation") <= 40  # a fifth, by chance
    copies = {f"copy{i}.png": f"{i}.png" for i in range(150)}
    for copy, name in copies.items():
        (tmp_path / copy).write_bytes((tmp_path / name).read_bytes())
    after = splits_of(write_photos(tmp_path, 300, "\n".join(f"{copy},again" for copy in copies)))
    assert all(before[name] == "validation" for name in before if after[name] == "validation")
    assert all(after[copy] == after[name] for copy, name in copies.items())


def test_groups_stay_together_when_some_are_held_out(tmp_path):
    write_photos(tmp_path, 300)
    rows = [f"{i}.png,x,{i // 3 if i < 200 else ''}" for i in range(299, -1, -1)]
    write_metadata(tmp_path, "\n".join(["file_name,text,group", *rows]))
    grouped = splits_of(tmp_path)
    assert all(grouped[f"{i}.png"] == grouped[f"{i - i % 3}.png"] for i in range(198))
    assert set(grouped.values()) == {"train", "validation"}


def test_without_metadata_subfolders_are_classes(tmp_path):
    for i, name in enumerate(("red_fox/1.png", "red_fox/in/0.png", "dog/a.PNG")):
        write_images(tmp_path, name, grey=40 * i)
    assert available_splits(tmp_path) == ["test"]
    pairs = load_pairs(tmp_path, "test")
    assert pairs.keys == ["dog/a.PNG", "red_fox/1.png", "red_fox/in/0.png"]
    assert pairs.classnames == ["dog", "red fox"] and pairs.labels.tolist() == [0, 1, 1]
    assert pairs.prompts() == [["a photo of a dog."], ["a photo of a red fox."]]
    assert greys(pairs) == [80, 0, 40]


# Tables


def written(kind: str, folder, monkeypatch):
    """A data set of a training and a test split, as a name or a folder."""
    images = [{"bytes": png(10 * i), "path": f"{i}.png"} for i in range(3)]
    texts = [["a dog", " a brown dog "], ["a cat"], ["a bird", "NA"]]
    columns = {"Image": images, "Captions": texts, "group": ["g", None, " g "]}
    data = datasets.Dataset.from_dict(columns).cast_column("Image", datasets.Image())
    both = datasets.DatasetDict(train=data, testing=data)
    if kind == "Parquet":
        folder.mkdir()
        for split in both:
            both[split].to_parquet(folder / f"{split}-00000-of-00001.parquet")
        return folder
    monkeypatch.setattr(datasets, "get_dataset_split_names", {"owner/set": [*both]}.get)
    monkeypatch.setattr(datasets, "load_dataset", lambda _, split: both[split])
    return "owner/set"


@pytest.mark.parametrize("kind", ["hub", "Parquet"])
def test_tables_give_captions_groups_and_images_on_demand(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    place = written(kind, tmp_path / "set", monkeypatch)
    assert sorted(available_splits(place)) == ["test", "train", "train+validation", "validation"]
    pairs = pickle.loads(pickle.dumps(load_pairs(place, "test")))
    assert (pairs.name, pairs.split) == ("set", "test")
    assert pairs.captions == [["a dog", "a brown dog"], ["a cat"], ["a bird", "NA"]]
    assert pairs.groups[0] == pairs.groups[2] != pairs.groups[1]
    assert pairs.keys == ["row 0", "row 1", "row 2"] and greys(pairs) == [0, 10, 20]


def test_json_lines_give_a_photo_the_captions_of_all_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = write_images(tmp_path / "set" / "test", "a.png", "in/b.png")
    rows = [("a.png", ["a dog", "NA"]), ("in/b.png", ["2013"]), ("a.png", ["a dog", "a cat"])]
    write_metadata(folder, [{"file_name": name, "text": texts} for name, texts in rows])
    pairs = load_pairs(folder.parent, "test")
    assert pairs.keys == ["test/a.png", "test/in/b.png"] and greys(pairs) == [100, 100]
    assert pairs.captions == [["a dog", "NA", "a cat"], ["2013"]]


def test_a_table_names_no_files_outside_its_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_images(tmp_path, "a.png", "set/b.png", grey=7)
    files = [str(tmp_path / name) for name in ("set/b.png", "a.png")]
    data = datasets.Dataset.from_dict({"image": files, "text": ["x", "y"]})
    data.to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(
        ValueError, match=r"1 of 2 .*: 1 outside the folder, by name or by link \(../a.png\)"
    ):
        load_pairs(tmp_path / "set")


# Shards


@pytest.fixture
def three(tmp_path):
    first = [("s0.jpg", png(10, "JPEG")), ("s0.txt", "a dog\na brown dog"), ("about.json", "{}")]
    first += [("s1.webp", png(20, "WEBP")), ("s1.txt", " a cat \r\n\n"), ("s1.seg.png", b"mask")]
    second = [("in/s2.txt", "\ufeffein Vogel, größer"), ("in/s2.PNG", png(30))]
    write_images(tmp_path / "wds_three", ".checkpoints/nshards.txt")
    return write_shards(tmp_path / "wds_three", first, second, split="test")


def test_samples_come_in_the_order_of_the_shards_with_texts_stripped(three):
    pairs = pickle.loads(pickle.dumps(load_pairs(three, "test")))
    assert (pairs.name, pairs.split, pairs.labels) == ("three", "test", None)
    assert available_splits(three) == ["test"]
    assert pairs.keys == ["s0", "s1", "in/s2"]
    assert pairs.captions == [["a dog", "a brown dog"], ["a cat"], ["ein Vogel, größer"]]
    assert greys(pairs) == pytest.approx([10, 20, 30], abs=3)  # JPEG and WebP lose a little


def test_an_image_s_digest_is_that_of_its_file_or_of_its_pixels(tmp_path, three):
    pairs = load_pairs(write_photos(tmp_path / "photos", 3), "train+validation")
    of_files = [hashlib.sha256(pairs.load(i).read_bytes()).hexdigest() for i in range(3)]
    assert pairs.subset([1, 0]).image_digests() == of_files[1::-1]
    assert (
        load_pairs(three, "test").image_digests()[0] == hashlib.sha256(png(10, "JPEG")).hexdigest()
    )
    of_pixels = replace(pairs, load=pairs.image).image_digests()
    assert len({*of_pixels}) == 3 and not {*of_pixels} & {*of_files}


def test_class_sets_give_labels_names_and_prompts(tmp_path):
    pairs = load_pairs(write_classes(tmp_path / "set"), "validation")
    assert (pairs.labels.tolist(), pairs.captions) == ([1, 0], [["sea lion"], ["cat"]])
    assert pairs.templates == ["a photo of a {c}.", "a {c}, {small}"]
    cat, sea_lion = pairs.prompts()
    assert cat[0] == "a photo of a cat."
    assert sea_lion == ["a photo of a sea lion.", "a sea lion, {small}"]


@pytest.mark.parametrize(("image", "fault"), [("c.png", "not an image"), ("c.json", "without an")])
def test_labels_stay_with_their_images_when_an_unusable_one_is_left_out(tmp_path, image, fault):
    members = [(image, b"no"), ("c.cls", "0")]
    for i in range(9):
        members += [(f"{i}.png", png()), (f"{i}.cls", "1")]
    with pytest.warns(UserWarning, match=rf"1 of 12 samples .*{fault}.*\(c\)"):
        pairs = load_pairs(write_classes(tmp_path / "set", *members), "val")
    assert (pairs.labels.tolist(), greys(pairs)) == ([*[1] * 10, 0], [10, *[100] * 9, 20])


def test_the_hub_gives_what_a_folder_of_the_same_layout_gives(three, monkeypatch):
    serve = Mock(return_value=str(three))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve)
    remote, local = load_pairs("owner/wds_three", "test"), load_pairs(three, "test")
    assert serve.call_args_list == [
        call("owner/wds_three", repo_type="dataset", allow_patterns=patterns)
        for patterns in (["*.txt"], ["*.txt", "test/*"])
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
