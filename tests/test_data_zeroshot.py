"""Classes and prompts of zero-shot sets: as clip-benchmark reads them, and refused where a part is missing."""

import os
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from test_data_shards import picture, write_set

from cibr.data import load_pairs
from cibr.data.pairs import Pairs
from cibr.data.shards import load_shards

CIBR_DATA = os.environ.get("CIBR_DATA")
TEMPLATES = "zeroshot_classification_templates.txt"
MEMBERS = [("a.png", picture(10)), ("a.cls", "1"), ("b.png", picture(20)), ("b.cls", "0")]


@pytest.fixture
def classes(tmp_path):
    """A set of two classes with two templates."""
    root = write_set(tmp_path / "wds_set", MEMBERS, split="test")
    (root / "classnames.txt").write_text("cat\nsea lion\n")
    (root / TEMPLATES).write_text("\ufeffa photo of a {c}.\n\n  a {c}, {small}  \n", encoding="utf-8")
    return root


def test_prompts_are_every_class_name_in_every_template(classes):
    pairs = load_shards(classes, "test")
    assert pairs.templates == ["a photo of a {c}.", "a {c}, {small}"]
    assert pairs.prompts() == [[t.replace("{c}", c) for t in pairs.templates] for c in ("cat", "sea lion")]
    part = pairs.subset([1])
    assert (part.classnames, part.prompts()) == (pairs.classnames, pairs.prompts())


@pytest.mark.parametrize("content", [None, "", " \n\n"])
def test_a_set_without_templates_loads_and_its_prompts_are_refused(classes, content):
    (classes / TEMPLATES).unlink()
    if content is not None:
        (classes / TEMPLATES).write_text(content)
    pairs = load_shards(classes, "test")
    assert (len(pairs), pairs.templates) == (2, None)
    with pytest.raises(ValueError, match=f"set has no prompt templates, .*: put {TEMPLATES} into"):
        pairs.prompts()


def test_a_template_without_the_place_of_the_class_is_named_where_prompts_are_asked_for(classes):
    (classes / TEMPLATES).write_text("a photo of a {c}.\na photo of a {}.\n")
    pairs = load_shards(classes, "test")
    with pytest.raises(ValueError, match=r"set has the prompt template 'a photo of a \{\}\.' without \{c\}"):
        pairs.prompts()


def test_pairs_without_classes_have_no_prompts(tmp_path):
    pairs = load_shards(write_set(tmp_path / "set", [("a.png", picture()), ("a.txt", "a dog")]), "train")
    assert (pairs.classnames, pairs.templates) == (None, None)
    with pytest.raises(ValueError, match="set has no class names, .*: put classnames.txt into"):
        pairs.prompts()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([("bad.png", picture()[:-30]), ("bad.cls", "0")], r"'bad' of .*0\.tar does not decode"),
        ([("bad.png", picture()), ("bad.cls", "7")], r"'bad' of .*0\.tar has the label '7'.* 2 lines"),
        ([("bad.png", picture())], r"'bad' of .*0\.tar has an image but no text"),
    ],
)
def test_labels_stay_with_their_pictures_when_an_unusable_one_is_skipped(classes, bad, message):
    write_set(classes, [*MEMBERS[:2], *bad, *MEMBERS[2:]], split="test")
    with pytest.raises(ValueError, match=message):
        list(load_shards(classes, "test").images())
    pairs = load_shards(classes, "test", on_error="skip", max_skipped=1)
    assert (pairs.keys, pairs.labels.tolist(), pairs.n_skipped) == (["a", "b"], [1, 0], 1)
    assert [image.getpixel((0, 0))[0] for image in pairs.images()] == [10, 20]
    assert len(pairs.prompts()) == 2


def test_a_picture_without_a_label_among_labelled_ones_is_named(classes):
    write_set(classes, [*MEMBERS, ("c.png", picture()), ("c.txt", "a caption")], split="test")
    with pytest.raises(ValueError, match=r"sample 'c' of .*0\.tar has the label ''"):
        load_shards(classes, "test")


@pytest.fixture
def hub(classes, tmp_path, monkeypatch):
    """A hub with the set `classes` in two shards; gives a list: it breaks off at the files that are put there."""
    write_set(classes, MEMBERS[:2], MEMBERS[2:], split="test")
    broken = []

    def serve(repo_id, filename, *, repo_type, cache_dir):
        if filename in broken:
            raise ConnectionResetError("broken off")
        if not (classes / filename).is_file():
            raise AssertionError(f"{filename} was asked for")
        copy = tmp_path / "cache" / filename
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((classes / filename).read_bytes())
        return str(copy)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", serve)
    return broken


@pytest.mark.parametrize("filename", ["test/1.tar", "classnames.txt", TEMPLATES])
def test_a_download_that_breaks_off_names_the_file_and_goes_on_when_asked_again(hub, filename):
    hub.append(filename)
    with pytest.raises(
        ConnectionError, match=f"could not fetch {filename} of .*owner/wds_set .*broken off.*CIBR_DATA"
    ):
        load_shards("owner/wds_set", "test")
    hub.clear()
    pairs = load_shards("owner/wds_set", "test")
    assert (pairs.keys, pairs.labels.tolist(), len(pairs.prompts())) == (["a", "b"], [1, 0], 2)


def test_a_download_that_left_half_a_shard_is_named(hub, classes):
    shard = classes / "test" / "1.tar"
    shard.write_bytes(shard.read_bytes()[:1100])
    with pytest.raises(ValueError, match=r"test/1\.tar is cut short"):
        load_shards("owner/wds_set", "test")


def test_a_template_may_come_with_pairs_that_are_made_in_memory():
    pairs = Pairs(
        "x", "test", [["dog"]], ["k"], picture, torch.tensor([0]), classnames=["dog"], templates=["a {c}"]
    )
    assert pairs.prompts() == [["a dog"]]


@pytest.mark.data
@pytest.mark.skipif(not CIBR_DATA, reason="CIBR_DATA is unset")
@pytest.mark.filterwarnings("ignore:.*shardshuffle:UserWarning", "ignore::ResourceWarning")  # of webdataset
@pytest.mark.parametrize("name", sorted(folder.name[4:] for folder in Path(CIBR_DATA or "unset").glob("wds_*")))
def test_images_labels_captions_and_prompts_are_those_that_clip_benchmark_loads(name):
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    folder = Path(CIBR_DATA) / f"wds_{name}"
    theirs = builder.build_wds_dataset(name, np.asarray, split="test", data_dir=str(folder))
    pairs = load_pairs(folder, "test")
    assert (pairs.classnames, pairs.templates) == (theirs.classes, theirs.templates)
    n_compared = 0
    for i, (image, target) in enumerate(theirs):
        assert i % 10 or np.array_equal(image, pairs.image(i)), pairs.keys[i]
        if pairs.labels is None:
            assert pairs.captions[i] == [text.strip() for text in target]
        else:
            assert pairs.labels[i] == target and pairs.captions[i] == [theirs.classes[target]]
        n_compared += 1
    assert n_compared == len(pairs)
    if pairs.classnames:
        own = [[template.format(c=kind) for template in theirs.templates] for kind in theirs.classes]
        assert pairs.prompts() == own
