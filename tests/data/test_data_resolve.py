"""A data set's name leads to code, a folder, CIBR_DATA or the hub, in this order."""

from pathlib import Path

import huggingface_hub
import pytest
from data_files import png, write_images, write_metadata, write_shards
from helpers import noise_pairs

from cibr.data import DATASETS, Dataset, Source, available_splits, load_pairs, resolve

SHARD = [("s.png", png()), ("s.txt", "a shard")]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current folder, an empty CIBR_DATA, and a hub that must not be asked."""
    (tmp_path / "here").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)


def write_photos(folder: Path) -> None:
    write_metadata(write_images(folder, "a.png", "b.png"), "file_name,text\na.png,x\nb.png,y\n")


def test_a_folder_comes_before_cibr_data_and_that_before_the_hub(tmp_path, monkeypatch):
    write_photos(Path("glyphs"))
    with pytest.warns(UserWarning, match=r"not as the folder: write \./glyphs for the folder"):
        assert resolve("glyphs").kind == "code"
    assert resolve("./glyphs").kind == "folder" and resolve("photos").kind == "features"
    assert resolve("flickr8k") == Source("flickr8k", "shards", "clip-benchmark/wds_flickr8k")
    folder = write_shards(tmp_path / "data" / "wds_flickr8k", SHARD, split="test")
    assert resolve("flickr8k") == Source("flickr8k", "folder", str(folder))
    assert load_pairs("flickr8k", "test").captions == [["a shard"]]
    write_photos(Path("flickr8k"))
    assert resolve("flickr8k") == Source("flickr8k", "folder", "flickr8k")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/here/flickr8k").place == str(tmp_path / "here" / "flickr8k")


def test_a_hub_id_is_of_shards_if_its_name_says_so():
    assert resolve("owner/wds_birds") == Source("birds", "shards", "owner/wds_birds")
    assert resolve("owner/birds-2.0") == Source("birds-2.0", "datasets", "owner/birds-2.0")
    assert resolve("wds_owner/birds").kind == "datasets"


def test_a_data_set_made_by_code_is_loaded_by_its_name(monkeypatch):
    mine = Dataset(lambda split: noise_pairs(4, split=split), ["train", "odd"])
    monkeypatch.setitem(DATASETS, "flickr8k", mine)
    assert available_splits("flickr8k") == ["train", "odd", "validation", "train+validation"]
    assert load_pairs("flickr8k", "odd").split == "odd"
