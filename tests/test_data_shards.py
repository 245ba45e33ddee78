"""WebDataset shards: read in place, alike from a folder and the hub, and broken ones named."""

import gc
import io
import os
import pickle
import tarfile
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError
from PIL import Image

from cibr.data.shards import load_shards

CIBR_DATA = os.environ.get("CIBR_DATA")
needs_photos = pytest.mark.skipif(not CIBR_DATA, reason="CIBR_DATA is unset")
PHOTOS = Path(CIBR_DATA or "unset") / "wds_flickr8k"


def picture(grey=100, kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(file, kind)
    return file.getvalue()


def write_shard(file, members):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def write_set(root, *shards, split="train"):
    """A set of shards, each a list of (member's name, content)."""
    for number, members in enumerate(shards):
        write_shard(root / split / f"{number}.tar", members)
    (root / split / "nshards.txt").write_text(f"{len(shards)}\n")
    (root / "dataset_type.txt").write_text("retrieval")
    return root


@pytest.fixture
def three(tmp_path):
    first = [("s0.jpg", picture(10, "JPEG")), ("s0.txt", "a dog\na brown dog"),
             ("s1.webp", picture(20, "WEBP")), ("s1.txt", " a cat \r\n\n")]  # fmt: skip
    second = [("in/s2.txt", "ein Vogel, größer"), ("in/s2.PNG", picture(30))]
    return write_set(tmp_path / "wds_three", first, second)


def greys(pairs):
    return [image.getpixel((4, 4))[0] for image in pairs.images()]


def test_samples_come_in_the_order_of_the_shards_with_texts_stripped(three):
    pairs = load_shards(three, "train")
    assert (pairs.name, pairs.split, pairs.n_skipped, pairs.labels) == ("three", "train", 0, None)
    assert pairs.keys == ["s0", "s1", "in/s2"]
    assert pairs.captions == [["a dog", "a brown dog"], ["a cat"], ["ein Vogel, größer"]]
    assert greys(pairs) == pytest.approx([10, 20, 30], abs=3)  # JPEG and WebP lose a little


def test_class_sets_give_labels_and_the_class_names_as_texts(tmp_path):
    members = [("a.png", picture()), ("a.cls", "1"), ("b.png", picture()), ("b.cls", "0\n")]
    root = write_set(tmp_path / "set", members)
    (root / "classnames.txt").write_text("cat\nsea lion\n")
    pairs = load_shards(root, "train")
    assert pairs.labels.tolist() == [1, 0] and pairs.captions == [["sea lion"], ["cat"]]
    assert pairs.classnames == ["cat", "sea lion"]


@pytest.mark.parametrize("label", ["2", "-1", "dog", ""])
def test_a_label_outside_the_class_names_is_named(tmp_path, label):
    root = write_set(tmp_path / "set", [("a.png", picture()), ("a.cls", label)])
    (root / "classnames.txt").write_text("cat\ndog\n")
    with pytest.raises(ValueError, match=r"sample 'a' of .*0\.tar has the label"):
        load_shards(root, "train")


def test_a_class_set_without_class_names_says_which_file_is_missing(tmp_path):
    root = write_set(tmp_path / "set", [("a.png", picture()), ("a.cls", "0")])
    with pytest.raises(FileNotFoundError, match="classnames.txt is missing"):
        load_shards(root, "train")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([("bad.png", picture())], r"sample 'bad' of .*0\.tar has an image but no text"),
        ([("bad.txt", "x")], r"sample 'bad' of .*0\.tar has a text but no image"),
        ([("bad.png", picture()), ("bad.txt", " \n")], r"'bad' of .*0\.tar has an empty \.txt"),
        ([("bad.png", picture()[:-30]), ("bad.txt", "x")], r"'bad' of .*0\.tar does not decode"),
    ],
)
def test_an_unusable_sample_is_named_or_skipped_and_counted_up_to_the_limit(tmp_path, bad, message):
    good = [("good.png", picture(50)), ("good.txt", "fine")]
    root = write_set(tmp_path / "set", [*bad, *good])
    with pytest.raises(ValueError, match=message):
        list(load_shards(root, "train").images())
    pairs = load_shards(root, "train", on_error="skip", max_skipped=1)
    assert (pairs.keys, pairs.n_skipped, greys(pairs)) == (["good"], 1, [50])
    with pytest.raises(ValueError, match=r"(?s)more than max_skipped=0 samples of set.*" + message):
        load_shards(root, "train", on_error="skip", max_skipped=0)


def test_the_limit_counts_all_kinds_of_unusable_samples_together(tmp_path):
    bad = [("a.png", picture()), ("b.txt", "x"), ("c.png", b"no"), ("c.txt", "x")]
    root = write_set(tmp_path / "set", [*bad, ("d.png", picture()), ("d.txt", "x")])
    assert load_shards(root, "train", on_error="skip", max_skipped=3).n_skipped == 3
    with pytest.raises(ValueError, match="more than max_skipped=2"):
        load_shards(root, "train", on_error="skip", max_skipped=2)


@pytest.mark.parametrize("shards", [[[]], [[("a.json", "{}")]]])
def test_a_set_without_samples_is_called_empty(tmp_path, shards):
    with pytest.raises(ValueError, match="train of set is empty"):
        load_shards(write_set(tmp_path / "set", *shards), "train")


def test_a_set_of_which_all_is_skipped_is_called_empty(tmp_path):
    root = write_set(tmp_path / "set", [("a.png", picture())])
    with pytest.raises(ValueError, match=r"empty \(1 samples skipped\)"):
        load_shards(root, "train", on_error="skip", max_skipped=5)


@pytest.mark.parametrize(
    "members",
    [
        [("a.png", picture()), ("a.jpg", picture()), ("a.txt", "x")],
        [("a.png", picture()), ("a.txt", "x"), ("a.txt", "y")],
    ],
)
def test_two_members_for_one_thing_are_refused(tmp_path, members):
    with pytest.raises(ValueError, match="sample 'a' of .* has two"):
        load_shards(write_set(tmp_path / "set", members), "train")


def test_a_text_that_is_not_utf8_is_named(tmp_path):
    root = write_set(tmp_path / "set", [("a.png", picture()), ("a.txt", b"\xff\xfe\xff")])
    with pytest.raises(ValueError, match="the .txt of sample 'a' of .* is not UTF-8"):
        load_shards(root, "train")


def test_a_shard_cut_short_anywhere_is_named(three):
    shard = three / "train" / "0.tar"
    whole = shard.read_bytes()
    for size in range(0, len(whole), 256):
        if not any(whole[size - size % 512 :][:512]) and size >= 512 * 8:
            break  # what follows are the zeros that end the archive
        shard.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"0\.tar is cut short"):
            load_shards(three, "train")
    assert size > 512 * 7


def test_a_shard_damaged_in_the_middle_is_named(three):
    shard = three / "train" / "0.tar"
    data = bytearray(shard.read_bytes())
    header = data.index(b"s1.webp")
    data[header : header + 512] = b"\x01" * 512
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=r"0\.tar is cut short or damaged at byte"):
        load_shards(three, "train")


def test_a_compressed_shard_or_another_file_is_named(three):
    (three / "train" / "1.tar").write_bytes(b"\x1f\x8b" + bytes(range(256)) * 8)
    with pytest.raises(ValueError, match=r"1\.tar is cut short or is no tar file"):
        load_shards(three, "train")


def test_a_missing_shard_is_named(three):
    (three / "train" / "1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.tar is missing"):
        load_shards(three, "train")


@pytest.mark.parametrize("text", ["", "many", "0", "-2", "1.5"])
def test_a_number_of_shards_that_is_none_is_named(three, text):
    (three / "train" / "nshards.txt").write_text(text)
    with pytest.raises(ValueError, match=r"nshards\.txt says"):
        load_shards(three, "train")


def test_a_missing_number_of_shards_is_named(three):
    (three / "train" / "nshards.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"nshards\.txt is missing"):
        load_shards(three, "train")


def test_a_split_that_is_not_there_is_answered_with_those_that_are(three):
    write_set(three, [("a.png", picture()), ("a.txt", "x")], split="test")
    with pytest.raises(ValueError, match="no split 'validation' in .*: test, train"):
        load_shards(three, "validation")


def test_shards_survive_pickling_as_data_loader_workers_need(three):
    pairs = pickle.loads(pickle.dumps(load_shards(three, "train").subset([2, 1])))
    assert greys(pairs) == pytest.approx([30, 20], abs=3)


@pytest.fixture
def hub(three, monkeypatch, tmp_path):
    """A hub that serves the set `three` as owner/wds_three, and the list of what was fetched."""
    fetched = []

    def serve(repo_id, filename, *, repo_type, cache_dir):
        assert (repo_id, repo_type) == ("owner/wds_three", "dataset")
        if not (three / filename).is_file():
            raise EntryMissingError(filename)
        copy = Path(cache_dir or tmp_path / "cache") / filename
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((three / filename).read_bytes())
        fetched.append(filename)
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", serve)
    return fetched


class EntryMissingError(RemoteEntryNotFoundError):
    """The hub's answer for a file that is not there, without the HTTP response."""

    def __init__(self, message):
        Exception.__init__(self, message)


def test_the_hub_gives_what_a_folder_of_the_same_layout_gives(three, hub, tmp_path):
    remote = load_shards("owner/wds_three", "train", cache_dir=tmp_path / "elsewhere")
    local = load_shards(three, "train")
    assert (remote.name, remote.keys, remote.captions) == (local.name, local.keys, local.captions)
    assert greys(remote) == greys(local)
    assert [name for name in hub if name.endswith("tar")] == ["train/0.tar", "train/1.tar"]
    assert (tmp_path / "elsewhere" / "train" / "0.tar").is_file()


def test_a_split_or_a_shard_that_the_hub_lacks_is_named(three, hub):
    with pytest.raises(ValueError, match="no split 'test' in the hub's .*owner/wds_three.*: train"):
        load_shards("owner/wds_three", "test")
    (three / "train" / "1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/1\.tar is missing in .*owner/wds_three"):
        load_shards("owner/wds_three", "train")


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), OSError("disk full"), RuntimeError("?")])
def test_a_hub_out_of_reach_names_the_repository_and_the_local_way(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ConnectionError, match="owner/wds_three .*CIBR_DATA .* as wds_three"):
        load_shards("owner/wds_three", "train")


@pytest.mark.data
@needs_photos
@pytest.mark.parametrize(("split", "n"), [("train", 6000), ("validation", 1000), ("test", 1000)])
def test_flickr8k_has_its_official_splits_with_five_captions_an_image(split, n):
    pairs = load_shards(PHOTOS, split)
    assert len(pairs) == n and {len(texts) for texts in pairs.captions} == {5}
    assert len(set(pairs.keys)) == n
    assert pairs.image(n - 1).mode == "RGB"


@pytest.mark.data
@needs_photos
def test_every_test_photo_decodes():
    assert load_shards(PHOTOS, "test", on_error="skip").n_skipped == 0


@pytest.mark.data
@needs_photos
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset leaves its file to the collector
def test_a_shard_reads_as_the_webdataset_library_reads_it():
    webdataset = pytest.importorskip("webdataset")
    pairs = load_shards(PHOTOS, "test")
    theirs = webdataset.WebDataset(str(PHOTOS / "test" / "0.tar"), shardshuffle=False)
    keys, captions = [], []
    for i, sample in enumerate(theirs):
        keys.append(sample["__key__"])
        captions.append(sample["txt"].decode().splitlines())
        if i % 20 == 0:
            image = Image.open(io.BytesIO(sample["jpg"])).convert("RGB")
            assert np.array_equal(pairs.image(i), image)
    del theirs, sample
    gc.collect()
    assert (pairs.keys, pairs.captions) == (keys, [[text.strip() for text in c] for c in captions])
