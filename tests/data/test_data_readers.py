"""Readers: image folders, hub sets and shards give the same pairs as other implementations read
from them.
"""

import os
import pickle
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from data_files import (
    TEMPLATES,
    png,
    write_classes,
    write_csv,
    write_images,
    write_jsonl,
    write_parquet,
    write_shards,
)

from cibr.data import available_splits, load_pairs
from cibr.data.readers import hash_split

CIBR_DATA = os.environ.get("CIBR_DATA")


def greys(pairs) -> list[int]:
    return [image.getpixel((4, 4))[0] for image in pairs.images()]


# Image folders


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_splits_are_subfolders_with_their_own_metadata(tmp_path, start, end):
    rows = ["file_name,text", 'a.png,"a dog, brown"', "a.png,NA", "in/b.png, ein großer Vogel "]
    rows += ['"ü, c.png","two\nlines, ""quoted"""', ""]
    images = write_images(tmp_path / "photos" / "train", "a.png", "in/b.png", "ü, c.png", "z.png")
    write_csv(images, start + end.join(rows))
    test = write_images(tmp_path / "photos" / "test", "c.png", grey=30)
    write_jsonl(test, {"file_name": "./c.png", "caption": ["one", " two ", ""], "year": 2013})
    train = pickle.loads(pickle.dumps(load_pairs(tmp_path / "photos", "train")))
    assert (train.name, train.split, train.n_skipped, train.groups) == ("photos", "train", 0, None)
    assert train.keys == ["a.png", "in/b.png", "ü, c.png"] and greys(train) == [100] * 3
    assert train.captions == [
        ["a dog, brown", "NA"],
        ["ein großer Vogel"],
        ['two\nlines, "quoted"'],
    ]
    other = load_pairs(tmp_path / "photos", "test")
    assert (other.keys, other.captions, greys(other)) == (["c.png"], [["one", "two"]], [30])


@pytest.mark.parametrize("name", ["val", "valid", "dev", "VAL", "validation"])
def test_a_validation_split_may_have_its_usual_names(tmp_path, name):
    for part in ("train", name):
        write_csv(write_images(tmp_path / part, "a.png"), "file_name,text\na.png,x\n")
    write_images(tmp_path / ".ipynb_checkpoints", "metadata.csv")
    assert sorted(available_splits(tmp_path)) == ["train", "validation"]
    assert (
        load_pairs(tmp_path, "validation").split
        == load_pairs(tmp_path, "dev").split
        == "validation"
    )


def test_one_metadata_file_may_name_the_split_folders(tmp_path):
    write_images(tmp_path, "train/a.png", "val/b.png")
    write_csv(tmp_path, "file_name,caption\ntrain/a.png,x\nval\\b.png,y\n")
    assert available_splits(tmp_path) == ["train", "validation"]
    assert load_pairs(tmp_path, "train").keys == ["train/a.png"]
    assert load_pairs(tmp_path, "validation").keys == ["val/b.png"], (
        "backslashes are those of Windows"
    )


def test_without_split_folders_a_tenth_is_validation_and_groups_stay_together(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    things = [i // 3 if i < 45 else i for i in range(60)]
    rows = [
        {"file_name": n, "text": n, "group": i // 3 if i < 45 else None}
        for i, n in enumerate(names)
    ]
    write_jsonl(write_images(tmp_path, *names), *rows)
    train, validation = load_pairs(tmp_path, "train"), load_pairs(tmp_path, "validation")
    assert sorted(train.keys + validation.keys) == sorted(names) and 1 <= len(validation) <= 20
    shown = [[things[names.index(key)] for key in part.keys] for part in (train, validation)]
    assert not set(shown[0]) & set(shown[1])
    for part, own in zip((train, validation), shown, strict=True):
        assert [[a == b for b in part.groups] for a in part.groups] == [
            [a == b for b in own] for a in own
        ]


def test_files_added_later_move_no_others_between_splits():
    names = [f"{i}.jpg" for i in range(2000)]
    before, after = hash_split(names[:1000]), hash_split(names[::-1])
    assert all(after[name] == split for name, split in before.items())
    assert 150 < list(after.values()).count("validation") < 250  # 200 of 2000, give or take 4 sd
    assert set(hash_split(["7.jpg", "8.jpg"]).values()) == {"train", "validation"}
    assert hash_split(["7.jpg"]) == {"7.jpg": "train"}


def test_rows_that_repeat_a_text_of_their_image_count_once_with_a_warning(tmp_path):
    write_csv(
        write_images(tmp_path / "train", "a.png"), "file_name,text\na.png,x\n./a.png, x\na.png,y\n"
    )
    with pytest.warns(
        UserWarning, match=r"metadata.csv repeats 1 texts of the same image: each is used once"
    ):
        assert load_pairs(tmp_path).captions == [["x", "y"]]


@pytest.mark.parametrize("row", ["gone.png,x", "link.png,x", "b.png, ", "b.png", "broken.png,x"])
def test_unusable_images_are_skipped_and_counted(tmp_path, row):
    train = write_csv(
        write_images(tmp_path / "train", "a.png", "b.png"), f"file_name,text\n{row}\na.png,x\n"
    )
    (train / "broken.png").write_bytes(png()[:50])
    (train / "link.png").symlink_to("nowhere.png")
    pairs = load_pairs(tmp_path, max_skipped=1)
    assert (pairs.keys, pairs.captions, greys(pairs), pairs.n_skipped) == (
        ["a.png"],
        [["x"]],
        [100],
        1,
    )


# The hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own for what `datasets` prepares."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def test_a_hub_set_gives_captions_groups_and_images_on_demand(tmp_path, cache):
    texts = [["a dog", " a brown dog "], ["a cat"], ["a bird", "NA"]]
    write_parquet(tmp_path / "set", "train", texts, "captions", group=["x", None, "x"])
    write_parquet(tmp_path / "set", "validation", texts[:2], "captions", group=["x", "x"])
    write_parquet(tmp_path / "other", "train", ["one", "2013"], "caption")
    pairs = pickle.loads(pickle.dumps(load_pairs(tmp_path / "set")))
    assert (
        pairs.captions == [["a dog", "a brown dog"], ["a cat"], ["a bird", "NA"]]
        and pairs.name == "set"
    )
    assert (pairs.groups.tolist(), pairs.match_labels().tolist()) == ([0, 1, 0], [0, 1, 0])
    assert greys(pairs) == [0, 10, 20] and greys(pairs.subset([2, 0])) == [20, 0]
    assert available_splits(tmp_path / "set") == ["train", "validation"]
    assert len(load_pairs(tmp_path / "set", "validation")) == 2
    assert load_pairs(tmp_path / "other").captions == [["one"], ["2013"]]


def test_rows_of_one_file_are_one_image_and_undecodable_ones_are_skipped(
    tmp_path, cache, monkeypatch
):
    import datasets

    write_images(tmp_path, "a.png", grey=7)
    (tmp_path / "b.png").write_bytes(b"no image")
    rows = {
        "image": [str(tmp_path / name) for name in ("a.png", "b.png", "a.png")],
        "text": ["one", "x", "two"],
    }
    hub = datasets.DatasetDict(
        {"train": datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())}
    )
    monkeypatch.setattr(datasets, "load_dataset", {"owner/photos": hub}.get)
    monkeypatch.setattr(datasets, "get_dataset_split_names", {"owner/photos": ["train", "val"]}.get)
    pairs = load_pairs("owner/photos", max_skipped=1)
    assert (pairs.name, pairs.captions, greys(pairs), pairs.n_skipped) == (
        "photos",
        [["one", "two"]],
        [7],
        1,
    )
    assert available_splits("owner/photos") == ["train", "validation"]


# Shards


@pytest.fixture
def three(tmp_path):
    first = [("s0.jpg", png(10, "JPEG")), ("s0.txt", "a dog\na brown dog"), ("s1.webp", png(20, "WEBP")),
             ("s1.txt", " a cat \r\n\n"), ("about.json", "{}")]  # fmt: skip
    second = [("in/s2.txt", "\ufeffein Vogel, größer"), ("in/s2.PNG", png(30))]
    return write_shards(tmp_path / "wds_three", first, second)


def test_samples_come_in_the_order_of_the_shards_with_texts_stripped(three):
    pairs = pickle.loads(pickle.dumps(load_pairs(three)))
    assert (pairs.name, pairs.split, pairs.n_skipped, pairs.labels) == ("three", "train", 0, None)
    assert pairs.keys == ["s0", "s1", "in/s2"]
    assert pairs.captions == [["a dog", "a brown dog"], ["a cat"], ["ein Vogel, größer"]]
    assert greys(pairs) == pytest.approx([10, 20, 30], abs=3)  # JPEG and WebP lose a little


def test_class_sets_give_labels_names_and_prompts(tmp_path):
    pairs = load_pairs(write_classes(tmp_path / "set"), "validation")
    assert pairs.labels.tolist() == [1, 0] and pairs.captions == [["sea lion"], ["cat"]]
    assert pairs.templates == ["a photo of a {c}.", "a {c}, {small}"]
    assert pairs.prompts()[1] == ["a photo of a sea lion.", "a sea lion, {small}"]
    (tmp_path / "set" / TEMPLATES).unlink()
    assert load_pairs(tmp_path / "set", "validation").templates is None


@pytest.mark.parametrize("bad", [[("c.png", b"no"), ("c.cls", "0")], [("c.png", png()), ("c.cls", "7")],
                                 [("c.png", png())], [("c.cls", "0")]])  # fmt: skip
def test_labels_stay_with_their_images_when_an_unusable_one_is_skipped(tmp_path, bad):
    pairs = load_pairs(write_classes(tmp_path / "set", *bad), "val", max_skipped=1)
    assert (pairs.keys, pairs.labels.tolist(), pairs.n_skipped) == (["a", "b"], [1, 0], 1)
    assert greys(pairs) == [10, 20]


def test_classes_of_one_name_load_with_a_warning_as_imagenet_has_some(tmp_path):
    with pytest.warns(
        UserWarning, match=r"classnames.txt gives several classes the name 'missile': no text"
    ):
        assert (
            len(load_pairs(write_classes(tmp_path / "set", names="missile\nmissile"), "val")) == 2
        )


def test_a_shard_cut_short_anywhere_is_named(three):
    shard = three / "train" / "0.tar"
    whole = shard.read_bytes()
    for size in range(0, len(whole.rstrip(b"\0")), 300):
        shard.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"0\.tar is cut short"):
            load_pairs(three)


def test_the_hub_gives_what_a_folder_of_the_same_layout_gives(three, monkeypatch):
    asked = []

    def serve(repo_id, *, repo_type, allow_patterns):
        assert (repo_id, repo_type) == ("owner/wds_three", "dataset")
        asked.append(allow_patterns)
        return str(three)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve)
    remote, local = load_pairs("owner/wds_three"), load_pairs(three)
    assert (remote.name, remote.keys, remote.captions) == (local.name, local.keys, local.captions)
    assert available_splits("owner/wds_three") == ["train"]
    assert asked == [["*.txt", "train/*", "training/*"], ["*.txt"]]


@pytest.mark.data
@pytest.mark.skipif(not CIBR_DATA, reason="CIBR_DATA is unset")
@pytest.mark.filterwarnings(
    "ignore:.*shardshuffle:UserWarning", "ignore::ResourceWarning"
)  # of webdataset
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
            assert pairs.labels[i] == target and pairs.captions[i] == [theirs.classes[target]]
