"""A data set's name leads to glyphs, a folder, CIBR_DATA or the hub, in this order, or advice."""

import io
import os
import tarfile
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from PIL import Image

import cibr.paths
from cibr.data import Source, cards, check_dataset, known_datasets, load_pairs, resolve
from cibr.names import nearest

REAL_DATA = os.environ.get("CIBR_DATA")


@pytest.fixture(autouse=True)
def outside(tmp_path, monkeypatch):
    """An empty current folder, no CIBR_DATA, and a hub that must not be asked."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("CIBR_DATA", raising=False)

    def fail(*args, **kwargs):
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)


def write_images(folder):
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "metadata.csv").write_text("file_name,text\na.png,x\nb.png,y\n")


def write_shards(folder, split="train", extra=()):
    (folder / split).mkdir(parents=True)
    (folder / split / "nshards.txt").write_text("1")
    image = io.BytesIO()
    Image.new("RGB", (4, 4)).save(image, "PNG")
    with tarfile.open(folder / split / "0.tar", "w") as tar:
        for name, data in (("s.png", image.getvalue()), ("s.txt", b"a shard"), *extra):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_glyphs_come_before_a_folder_of_that_name():
    write_images(Path("glyphs"))
    assert resolve("glyphs") == Source("glyphs", "glyphs")


def test_a_folder_comes_before_cibr_data_and_that_before_the_hub(tmp_path, monkeypatch):
    assert resolve("flickr8k") == Source("flickr8k", "hub", "clip-benchmark/wds_flickr8k")
    write_shards(tmp_path / "data" / "wds_flickr8k")
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "data"))
    assert resolve("flickr8k") == Source("flickr8k", "shards", str(tmp_path / "data" / "wds_flickr8k"))
    write_images(Path("flickr8k"))
    assert resolve("flickr8k") == Source("flickr8k", "images", "flickr8k")


def test_pairs_are_loaded_from_where_the_name_leads(tmp_path, monkeypatch):
    write_shards(tmp_path / "data" / "wds_mine")
    write_images(Path("photos"))
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "data"))
    shards, images = load_pairs("mine"), load_pairs(Path("photos"))
    assert (shards.name, shards.captions, shards.split) == ("mine", [["a shard"]], "train")
    assert (images.name, len(images) + len(load_pairs("photos", "validation"))) == ("photos", 2)


def test_skipping_reaches_the_reader(tmp_path):
    write_shards(tmp_path / "mine", extra=[("t.txt", b"no image")])
    assert load_pairs(tmp_path / "mine", on_error="skip", max_skipped=1).n_skipped == 1


def test_a_folder_is_of_shards_if_it_says_its_type_or_counts_its_shards():
    write_images(Path("x"))
    assert resolve("x").kind == "images"
    Path("x/dataset_type.txt").write_text("retrieval")
    assert resolve("x").kind == "shards"
    write_shards(Path("y"))
    assert resolve("y").kind == "shards"


def test_an_unknown_name_is_answered_with_the_nearest_and_the_ways_to_give_data():
    with pytest.raises(ValueError, match="'flickr8', did you mean 'flickr8k'?.*metadata.csv.*CIBR_DATA"):
        load_pairs("flickr8")
    with pytest.raises(ValueError, match=r"no data set 'no/such/place'\. Known: glyphs, "):
        check_dataset("no/such/place")
    with pytest.raises(ValueError, match="no data set ''"):
        check_dataset("")


def test_a_cibr_data_that_is_no_folder_is_named(monkeypatch):
    monkeypatch.setenv("CIBR_DATA", "nowhere")
    with pytest.raises(ValueError, match="CIBR_DATA is 'nowhere', which is not a folder"):
        check_dataset("flickr8k")
    check_dataset("glyphs")


def test_a_split_that_the_card_lacks_is_refused_before_the_hub_is_asked():
    with pytest.raises(ValueError, match="no split 'validation' on the hub: it has train, test"):
        load_pairs("flickr30k", "validation")


def test_known_names_are_the_cards_and_the_sets_in_cibr_data(tmp_path, monkeypatch):
    assert known_datasets() == list(cards())
    assert {"glyphs", "flickr8k", "flickr30k", "mscoco_captions"} <= set(known_datasets())
    write_shards(tmp_path / "data" / "wds_mine")
    write_shards(tmp_path / "data" / "wds_flickr8k")
    monkeypatch.setenv("CIBR_DATA", str(tmp_path / "data"))
    assert known_datasets() == [*cards(), "mine"]


def test_every_card_has_every_field():
    fields = {"title", "kind", "hub", "splits", "captions_per_image", "citation", "terms"}
    for name, card in cards().items():
        assert set(card) == fields, name
        assert card["kind"] in ("pairs", "zero-shot")
        assert card["hub"] is None or card["hub"].endswith(f"/wds_{name}")


def test_the_cards_of_an_installed_package_lie_inside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cibr.paths, "PACKAGE", tmp_path / "cibr")
    with pytest.raises(FileNotFoundError, match="cards are missing"):
        cards()
    (tmp_path / "cibr" / "data").mkdir(parents=True)
    (tmp_path / "cibr" / "data" / "datasets.yaml").write_text(yaml.safe_dump({"x": {}}))
    assert cards() == {"x": {}}


def test_folders_are_those_of_the_checkout_or_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setattr(cibr.paths, "PACKAGE", tmp_path / "site" / "cibr")
    assert cibr.paths.project_root() == Path.cwd()
    assert cibr.paths.data_folder() == Path.home() / ".cache" / "cibr"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pyproject.toml").touch()
    assert cibr.paths.project_root() == tmp_path / "site"
    assert cibr.paths.data_folder() == tmp_path / "site" / "data" / "cache"


def test_the_nearest_name_ignores_case_and_stays_silent_when_none_is_near():
    assert nearest("Flickr-8K", ["flickr8k", "glyphs"]) == ", did you mean 'flickr8k'?"
    assert nearest("photos", ["flickr8k", "glyphs"]) == nearest("x", []) == ""


@pytest.mark.data
@pytest.mark.skipif(not REAL_DATA, reason="CIBR_DATA is unset")
def test_flickr8k_is_found_in_cibr_data(monkeypatch):
    monkeypatch.setenv("CIBR_DATA", REAL_DATA)
    assert len(load_pairs("flickr8k", "validation")) == 1000
