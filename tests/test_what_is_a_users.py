"""Files of others stay and changed photos are noticed: by commands and public calls alone."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import noise_pairs, picture, same
from small_runs import write_folder

from cibr import fit
from cibr.cli import main
from cibr.train import configure

RUN = ["--model", "tiny", "--epochs", "1", "--batch-size", "4"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of eight photos for training and four for validation, with captions."""
    return write_folder(tmp_path_factory.mktemp("photos") / "mine", train=8, validation=4, test=4)


def train(dataset, output, *options):
    return main(["train", "--dataset", dataset, "--output-dir", str(output), *RUN, *options])


def contents(folder):
    files = [file for file in Path(folder).rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


FOREIGN = [
    ["checkpoint-2/optimizer.pt", "checkpoint-2/trainer_state.json"],
    ["checkpoint-2"],
    ["run.json", "history.csv"],
    ["README.md"],
]


@pytest.mark.parametrize("names", FOREIGN, ids=" ".join)
def test_an_output_folder_with_files_of_others_is_refused_and_untouched(
    photos, tmp_path, capsys, names
):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"epoch": 3}')
    before = contents(tmp_path)
    assert train(photos, tmp_path) == 1
    assert contents(tmp_path) == before
    assert "files that no run made, such as" in capsys.readouterr().err


def test_files_that_others_put_into_a_run_s_folder_stay(photos, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", ".gitkeep", "out.ipynb", "slurm.log"):  # of what starts the run
        (folder / name).write_text("mine")
    assert train(photos, folder) == 0
    kept = {"a.3.part": b"a", "checkpoint-5/model.bin": b"b", "thesis.tex": b"c"}
    for name, content in kept.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    before = contents(folder)
    assert train(photos, folder) == 0 and contents(folder) == before


# Photos that change


def test_features_are_those_of_the_images_whatever_their_keys(build, tmp_path):
    first = noise_pairs(100)
    other = replace(first, load=lambda i: picture(500 if i == 2 else i))

    def heads(pairs, name):
        config = configure(model="frozen", epochs=1, batch_size=50, output_dir=str(tmp_path / name))
        fit(model := build("frozen"), pairs, None, config)
        return model

    of_first = heads(first, "first")
    of_other = heads(other, "other")
    assert same(of_other, heads(replace(other, name="never cached"), "again"))
    assert not same(of_other, of_first)


def test_a_run_whose_photos_changed_is_refused(photos, tmp_path, capsys):
    photos = shutil.copytree(photos, tmp_path / "photos")
    image, run = photos / "train" / "3.png", tmp_path / "run"
    assert train(str(photos), run) == 0
    before, state, old = contents(run), os.stat(image), image.read_bytes()
    new = bytearray(old)
    new[-1] ^= 1  # the file decodes as before
    image.write_bytes(new)
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert train(str(photos), run) == 1 and contents(run) == before
    assert "holds a run with another training pairs" in capsys.readouterr().err
    image.write_bytes(old)
    assert train(str(photos), run) == 0 and contents(run) == before
