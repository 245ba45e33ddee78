"""A data set's name leads to code, a folder, CIBR_DATA or the hub, in this order."""

from pathlib import Path

import pytest
from helpers import noise_pairs

from cibr.data import DATASETS, Dataset, Source, available_splits, load_pairs, resolve


def test_a_folder_comes_before_cibr_data_and_that_before_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "data"))
    Path("glyphs").mkdir()
    with pytest.warns(UserWarning, match=r"write \./glyphs for the folder"):
        assert resolve("glyphs").kind == "known"
    assert resolve("./glyphs").kind == "folder" and resolve("photos").kind == "known"
    assert resolve("flickr8k") == Source("flickr8k", "shards", "clip-benchmark/wds_flickr8k")
    (tmp_path / "data" / "wds_flickr8k").mkdir(parents=True)
    own = str(tmp_path / "data" / "wds_flickr8k")
    assert resolve("flickr8k") == Source("flickr8k", "folder", own)
    Path("flickr8k").mkdir()
    assert resolve("flickr8k") == Source("flickr8k", "folder", "flickr8k")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/flickr8k").place == str(tmp_path / "flickr8k")


def test_a_hub_id_is_of_shards_if_its_name_says_so():
    assert resolve("owner/wds_birds") == Source("birds", "shards", "owner/wds_birds")
    assert resolve("wds_owner/birds-2.0") == Source("birds-2.0", "datasets", "wds_owner/birds-2.0")


def test_a_data_set_made_by_code_is_loaded_by_its_name(monkeypatch):
    mine = Dataset(lambda split: noise_pairs(4, split=split), ["train", "odd"])
    monkeypatch.setitem(DATASETS, "flickr8k", mine)
    assert available_splits("flickr8k") == ["train", "odd", "validation", "train+validation"]
    assert load_pairs("flickr8k", "odd").split == "odd"
