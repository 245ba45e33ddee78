"""A folder of images with metadata: its splits, its texts, and what is wrong with it by name."""

import gc
import json
import pickle
from pathlib import Path

import pandas
import pytest
from PIL import Image

from cibr.data.folder import hash_split, load_folder


def write_images(folder, *names, grey=100):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (grey, grey, grey)).save(folder / name)
    return folder


def write_jsonl(folder, *rows):
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return folder


def write_csv(folder, text):
    (folder / "metadata.csv").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def photos(tmp_path):
    """Two images in train and one in test, of three kinds."""
    train = write_images(tmp_path / "photos" / "train", "a.png", "in/b.jpg", grey=10)
    write_csv(train, 'file_name,text\na.png,"a dog, brown"\na.png,NA\nin/b.jpg, ein großer Vogel \n')
    test = write_images(tmp_path / "photos" / "test", "c.webp", grey=30)
    write_jsonl(test, {"file_name": "c.webp", "caption": ["one", " two ", ""], "year": 2013})
    return tmp_path / "photos"


def test_splits_are_subfolders_with_their_own_metadata(photos):
    train, test = load_folder(photos, "train"), load_folder(photos, "test")
    assert (train.name, train.split, train.n_skipped) == ("photos", "train", 0)
    assert train.keys == ["a.png", "in/b.jpg"]
    assert train.captions == [["a dog, brown", "NA"], ["ein großer Vogel"]]
    assert test.captions == [["one", "two"]]
    assert test.image(0).getpixel((4, 4))[0] == pytest.approx(30, abs=3)  # WebP loses a little


def test_a_folder_can_be_pickled_as_data_loader_workers_need(photos):
    pairs = pickle.loads(pickle.dumps(load_folder(photos, "train")))
    assert pairs.image(0).getpixel((4, 4)) == (10, 10, 10)


def test_one_metadata_file_may_name_the_split_folders(tmp_path):
    write_images(tmp_path, "train/a.png", "test/b.png")
    write_csv(tmp_path, "file_name,caption\ntrain/a.png,x\ntest/b.png,y\n")
    assert load_folder(tmp_path, "train").keys == ["train/a.png"]
    assert load_folder(tmp_path, "test").captions == [["y"]]
    write_images(tmp_path, "c.png")
    write_csv(tmp_path, "file_name,caption\ntrain/a.png,x\ntest/b.png,y\nc.png,z\n")
    with pytest.raises(ValueError, match="others outside, such as c.png"):
        load_folder(tmp_path, "train")


def test_without_split_folders_a_tenth_is_validation_and_the_rest_train(tmp_path):
    names = [f"{i}.png" for i in range(40)]
    write_jsonl(write_images(tmp_path, *names), *({"file_name": n, "text": n} for n in names))
    train, validation = load_folder(tmp_path, "train"), load_folder(tmp_path, "validation")
    assert sorted(train.keys + validation.keys) == sorted(names)
    assert 1 <= len(validation) <= 10
    with pytest.raises(ValueError, match="no split 'test': .*: train, validation.*subfolder test"):
        load_folder(tmp_path, "test")


def test_files_added_later_move_no_others():
    names = [f"{i}.jpg" for i in range(2000)]
    before, after = hash_split(names[:1000]), hash_split(names[::-1])
    assert all(after[name] == split for name, split in before.items())
    assert 150 < list(after.values()).count("validation") < 250  # 200 of 2000, give or take 4 sd


@pytest.mark.parametrize("first", range(30))
def test_even_two_files_give_one_of_each_split(first):
    assert set(hash_split([f"{first}.jpg", f"{first + 1}.jpg"]).values()) == {"train", "validation"}


def test_one_image_cannot_be_split(tmp_path):
    write_csv(write_images(tmp_path, "a.png"), "file_name,text\na.png,x\n")
    with pytest.raises(ValueError, match="names 1 image: train and validation need two"):
        load_folder(tmp_path, "train")


def test_images_of_one_group_are_known_as_looks_of_one_thing_and_stay_in_one_split(tmp_path):
    names = [f"{i}.png" for i in range(60)]
    rows = [{"file_name": name, "text": "x", "group": i // 3 if i < 45 else None} for i, name in enumerate(names)]
    write_jsonl(write_images(tmp_path, *names), *rows)
    parts = [load_folder(tmp_path, split) for split in ("train", "validation")]
    thing = {name: i // 3 if i < 45 else i for i, name in enumerate(names)}
    for part in parts:
        things = [thing[key] for key in part.keys]
        equal = [[a == b for b in things] for a in things]
        assert [[a == b for b in part.groups.tolist()] for a in part.groups.tolist()] == equal
    assert not {thing[key] for key in parts[0].keys} & {thing[key] for key in parts[1].keys}


def test_without_a_group_none_is_known(tmp_path):
    write_csv(write_images(tmp_path, "a.png", "b.png"), "file_name,text,group\na.png,x,\nb.png,y, \n")
    assert load_folder(tmp_path, "train").groups is None


def test_images_of_one_group_cannot_be_split(tmp_path):
    write_csv(write_images(tmp_path, "a.png", "b.png"), "file_name,text,group\na.png,x,1\nb.png,y,1\n")
    with pytest.raises(ValueError, match="names 2 images of one group: train and validation need two"):
        load_folder(tmp_path, "train")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((1.5, 2), "line 1, has the group 1.5: it is a string or a whole number"),
        (("a", "b"), "line 2, puts c.webp into group 'b', an earlier row into 'a': an image has one group"),
    ],
)
def test_a_group_that_is_none_names_the_line_and_the_rule(photos, groups, message):
    write_jsonl(photos / "test", *({"file_name": "c.webp", "text": "x", "group": group} for group in groups))
    with pytest.raises(ValueError, match=message):
        load_folder(photos, "test")


def test_a_split_that_is_not_there_is_answered_with_those_that_are(photos):
    with pytest.raises(ValueError, match="no split 'validation': .*there: train, test"):
        load_folder(photos, "validation")


def test_a_folder_without_metadata_names_the_files_that_would_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="no metadata.jsonl and no metadata.csv"):
        load_folder(write_images(tmp_path, "a.png"), "train")


def test_two_metadata_files_are_refused(photos):
    write_jsonl(photos / "train", {"file_name": "a.png", "text": "x"})
    with pytest.raises(ValueError, match="both metadata.jsonl and metadata.csv"):
        load_folder(photos, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,text\na.png,x\n", r"line 2, needs the columns .* there: file, text"),
        ("file_name,title\na.png,x\n", r"needs the columns file_name and text or caption.*title"),
        ("file_name,text\na.png,a dog, brown\n", "line 2, has more fields than columns"),
        ("file_name,text\n,x\n", "line 2, has no file_name"),
        ("file_name,text\n", r"metadata\.csv has no rows"),
        ("", r"metadata\.csv has no rows"),
        ('file_name,text\na.png,"a dog\nin/b.jpg,x\n', "every quote closed"),
    ],
)
def test_a_malformed_csv_names_the_line_and_the_rule(photos, text, message):
    write_csv(photos / "train", text)
    with pytest.raises(ValueError, match=message):
        load_folder(photos, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"file_name": "c.webp", "text": "x"}\n{"file_name"\n', "line 2, is not JSON"),
        ('["c.webp", "x"]\n', "line 1, is not a JSON object"),
        (
            '{"file_name": "c.webp", "text": 7}\n',
            "line 1, has the text 7: it is a string or a list",
        ),
        ('{"file_name": "c.webp", "text": ["x", null]}\n', "it is a string or a list of strings"),
        ('{"file_name": null, "text": "x"}\n', "line 1, has no file_name"),
        ("\n\n", "has no rows"),
    ],
)
def test_a_malformed_jsonl_names_the_line_and_the_rule(photos, text, message):
    (photos / "test" / "metadata.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_folder(photos, "test")


def test_metadata_that_are_not_utf8_are_named(photos):
    (photos / "train" / "metadata.csv").write_bytes("file_name,text\na.png,größer\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"metadata\.csv cannot be read .*UTF-8"):
        load_folder(photos, "train")


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_csv_from_a_spreadsheet_reads_the_same(photos, start, end):
    write_csv(photos / "train", start + end.join(["file_name,text", "a.png,x", "in/b.jpg,y", ""]))
    assert load_folder(photos, "train").captions == [["x"], ["y"]]


@pytest.mark.parametrize(
    ("row", "error", "message"),
    [
        ("gone.png,x", FileNotFoundError, r"gone\.png is missing"),
        ("in/b.jpg, ", ValueError, r"in/b\.jpg has no text"),
        ("in/b.jpg", ValueError, r"in/b\.jpg has no text"),
        ("broken.png,x", ValueError, r"broken\.png does not decode as an image"),
    ],
)
def test_an_unusable_sample_is_named_or_skipped_and_counted_up_to_the_limit(photos, row, error, message):
    train = write_csv(photos / "train", f"file_name,text\na.png,x\n{row}\n")
    (train / "broken.png").write_bytes((train / "a.png").read_bytes()[:50])
    with pytest.raises(error, match=message):
        list(load_folder(photos, "train").images())
    pairs = load_folder(photos, "train", on_error="skip", max_skipped=1)
    assert (pairs.keys, pairs.n_skipped) == (["a.png"], 1)
    with pytest.raises(ValueError, match=r"(?s)more than max_skipped=0 samples of photos.*" + message):
        load_folder(photos, "train", on_error="skip")


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # their reader of csv leaves files open
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_file_names_texts_and_pictures_equal_those_that_datasets_reads(tmp_path, kind):
    import datasets

    texts = {"a.png": 'a "dog", brown', "in/b.jpg": "two\nlines", "ü c.png": "ein großer Vogel"}
    rows = [{"file_name": name, "text": text} for name, text in texts.items()]
    for split, grey in (("train", 9), ("validation", 99)):
        folder = write_images(tmp_path / "set" / split, *texts, grey=grey)
        if kind == "jsonl":
            write_jsonl(folder, *rows)
        else:
            pandas.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    options = dict(data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    for split in ("train", "validation"):
        theirs = datasets.load_dataset("imagefolder", split=split, **options)
        files = theirs.cast_column("image", datasets.Image(decode=False))["image"]
        names = [Path(file["path"]).relative_to(tmp_path / "set" / split).as_posix() for file in files]
        pictures = [image.convert("RGB").tobytes() for image in theirs["image"]]
        ours = load_folder(tmp_path / "set", split)
        assert dict(zip(names, pictures, strict=True)) == {
            key: image.tobytes() for key, image in zip(ours.keys, ours.images(), strict=True)
        }
        assert dict(zip(names, theirs["text"], strict=True)) == texts
        assert dict(zip(ours.keys, ours.texts(), strict=True)) == texts
    gc.collect()


def test_images_that_no_row_names_are_not_used(photos):
    write_images(photos / "train", "z.png")
    assert load_folder(photos, "train").keys == ["a.png", "in/b.jpg"]
