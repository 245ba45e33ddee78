"""A data set's name leads to code, a folder, CIBR_DATA or the hub, in this order."""

from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers import noise_pairs

from cibr.data import DATASETS, Dataset, _readers, available_splits, load_pairs


@pytest.fixture
def read(monkeypatch):
    """What a name is read as, under which name and from where."""

    def of(name):
        loaders = {kind: Mock(return_value={}) for kind in ("folder", "shard", "table")}
        for kind, load in loaders.items():
            monkeypatch.setattr(_readers, f"{kind}_loaders", load)
        available_splits(name)
        return next((k, *map(str, load.call_args[0])) for k, load in loaders.items() if load.called)

    return of


def test_a_folder_comes_before_cibr_data_and_that_before_the_hub(tmp_path, monkeypatch, read):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "data"))
    Path("glyphs").mkdir()
    with pytest.warns(UserWarning, match=r"write \./glyphs for the folder"):
        assert "test_characters" in available_splits("glyphs")
    assert read("./glyphs") == ("folder", "glyphs", "glyphs")
    assert read("flickr8k") == ("shard", "flickr8k", "clip-benchmark/wds_flickr8k")
    (tmp_path / "data" / "wds_flickr8k").mkdir(parents=True)
    assert read("flickr8k") == ("folder", "flickr8k", str(tmp_path / "data" / "wds_flickr8k"))
    Path("flickr8k").mkdir()
    assert read("flickr8k") == ("folder", "flickr8k", "flickr8k")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/flickr8k") == ("folder", "flickr8k", str(tmp_path / "flickr8k"))


def test_a_hub_id_is_of_shards_if_its_name_says_so(read):
    assert read("owner/wds_birds") == ("shard", "birds", "owner/wds_birds")
    assert read("wds_owner/birds-2.0") == ("table", "birds-2.0", "wds_owner/birds-2.0")


def test_a_data_set_made_by_code_is_loaded_by_its_name(monkeypatch):
    mine = Dataset(lambda split: noise_pairs(4, split=split), ["train", "odd"])
    monkeypatch.setitem(DATASETS, "flickr8k", mine)
    assert available_splits("flickr8k") == ["train", "odd", "validation", "train+validation"]
    assert load_pairs("flickr8k", "odd").split == "odd"
