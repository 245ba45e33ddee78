"""The command `cibr`: what it prints and leaves behind, and one clear line for what goes wrong."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from unittest.mock import Mock
from urllib.parse import quote

import pandas as pd
import pytest
from helpers import noise_pairs, picture

import cibr
from cibr import DualEncoder, data, train
from cibr.cli import main
from cibr.data.pairs import open_rgb


def test_search_ranks_the_images_of_a_folder_and_names_broken_ones(tmp_path, capsys, build):
    model = build("tiny")
    folder = model.save_pretrained(tmp_path / "model")
    photos = tmp_path / "photos"
    (photos / "deep" / "er").mkdir(parents=True)
    names = ["a.png", "b.JPG", "deep/c.webp", "deep/d.gif", "deep/er/e.bmp", "f.tiff"]
    for i, name in enumerate(names):
        picture(i).save(photos / name)
    (photos / "deep" / "broken.jpeg").write_bytes(b"no image")
    (photos / "notes.txt").write_text("no image")
    call = ["search", str(folder), str(photos), "a red cat"]
    assert main([*call, "--top", "30"]) == 0
    printed, errors = capsys.readouterr()
    assert "broken.jpeg" in errors and errors.count("\n") == 1
    rows = [line.split() for line in printed.splitlines()[3:]]
    assert [int(rank) for rank, *_ in rows] == list(range(1, 7))
    assert {path for *_, path in rows} == {str(photos / name) for name in names}
    images = [open_rgb(Path(path)) for *_, path in rows]
    cosines = [float(cosine) for _, cosine, _ in rows]
    assert cosines == sorted(cosines, reverse=True)
    expected = model.embed_images(images) @ model.embed_texts(["a red cat"])[0]
    assert cosines == pytest.approx(expected.tolist(), abs=6e-4)
    assert main([*call, "a dog", "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[1], lines[5], len(lines)) == ("a red cat", "a dog", 8)


def test_search_embeds_an_image_again_when_it_or_the_model_changes(
    tmp_path, monkeypatch, capsys, build
):
    monkeypatch.setattr("cibr.utils.cache_folder", lambda: tmp_path / "cache")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(5):
        picture(i).save(photos / f"{i}.png")
    embedded, embed = [], DualEncoder.embed_images
    monkeypatch.setattr(
        DualEncoder, "embed_images", lambda self, x: embedded.append(len(x)) or embed(self, x)
    )
    models = [str(build(kind).save_pretrained(tmp_path / kind)) for kind in ("tiny", "frozen")]

    def search(model):
        embedded.clear()
        assert main(["search", model, str(photos), "a dog"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
        return {Path(name).name: cosine for _, cosine, name in lines}, sum(embedded[1:])  # no probe

    first, n_embedded = search(models[0])
    assert n_embedded == 5 and search(models[0]) == (first, 0)
    other, n_embedded = search(models[1])
    assert n_embedded == 5 and other != first
    picture(9).save(photos / "1.png")
    (photos / "2.png").unlink()
    changed, n_embedded = search(models[0])
    assert n_embedded == 1 and changed.keys() == first.keys() - {"2.png"}
    assert [name for name in changed if changed[name] != first[name]] == ["1.png"]
    Path(models[0]).rename(tmp_path / "before")
    Path(models[1]).rename(models[0])  # another model of the same name and width
    assert search(models[0])[1] > 0


def test_evaluate_prints_and_saves_scores_and_the_first_model_minus_the_second(
    small, clip_folder, tmp_path, capsys, build
):
    other = str(build("tiny").save_pretrained(tmp_path / "tiny"))
    call = ["evaluate", clip_folder, "--suite", "small", "--compare-with", other, "--device", "cpu"]
    assert main([*call, "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    files = {
        model: tmp_path / "out" / quote(model.strip("/"), safe="") / "small" / "rows.csv"
        for model in (clip_folder, other)
    }
    rows = [pd.read_csv(file).set_index(["dataset", "metric"]) for file in files.values()]
    assert printed.count("mean of 2") == 3 and printed.count("captions, n = 14") == 3
    _, _, compared = printed.partition(f"{clip_folder} minus {other}")
    differences = 100 * (rows[0]["value"] - rows[1]["value"]).loc["captions"]
    metric = differences.abs().idxmax()
    line = next(line for line in compared.splitlines() if line.startswith(metric))
    assert differences[metric] != 0 and line.split()[1] == f"{differences[metric]:+.1f}"


def test_train_takes_settings_as_options_and_says_what_it_trains_on(monkeypatch, tmp_path, capsys):
    parts = {"train": noise_pairs(56), "validation": noise_pairs(49, split="validation")}
    monkeypatch.setattr(data, "load_parts", lambda _, splits: [parts[split] for split in splits])
    seen = Mock(side_effect=ValueError("seen"))
    monkeypatch.setattr(train, "build_model", seen)
    options = ["--beta", "0.2", "--loss-options", '{"sample": true}', "--learning-rate=0.01"]
    options += ["--batch-size", "64", "--no-learn-temperature"]
    assert main(["train", *options, "--output-dir", str(tmp_path / "run")]) == 1
    config = seen.call_args[0][0]
    assert (config.beta, config.batch_size, config.learning_rate) == (0.2, 64, 0.01)
    assert config.loss_options == {"sample": True} and not config.learn_temperature
    assert "noise: 56 images for train, 49 for validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["evaluate", "{tmp}"], "{tmp}"),
        (["search", "clip-tiny", "{tmp}/none", "a dog"], "no image in '{tmp}/none'"),
        (["search", "clip-tiny", "{tmp}", "a", " "], "the text to search for is empty"),
        (["search", "clip-tiny", "{tmp}", "a.jpg"], "'a.jpg' is the name of an image: search by"),
        (["search", "clip-tiny", "{tmp}", "a", "--top", "0"], "--top is 0"),
        (["evaluate", "clip-tiny", "--plugin", "nope"], "No module named 'nope'"),
        (["evaluate", "clip-tiny", "--suite", "charactres"], "did you mean 'characters'"),
        (["train", "--penalty", "vmff"], "'vmff', did you mean 'vmf'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(call, message, tmp_path, capsys):
    assert main([word.format(tmp=tmp_path) for word in call]) == 1
    printed, errors = capsys.readouterr()
    assert message.format(tmp=tmp_path) in errors and not printed and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        (["--version"], 0, f"cibr {cibr.__version__}"),
        (["train", "--help"], 0, "weight of the penalty; 0 is CLIP (default 0.0)"),
        (["compare", "--dataset", "x"], 2, "invalid choice: 'compare'"),
        (["evaluate", "x", "--suite", "photos", "--data", "y"], 2, "--data: not allowed with"),
    ],
)
def test_what_the_parser_answers(call, code, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(call)
    printed = " ".join("".join(capsys.readouterr()).split())
    assert stop.value.code == code and message in printed


def test_of_the_current_folder_a_command_imports_named_plugins_alone(tmp_path):
    [script] = entry_points(group="console_scripts", name="cibr")
    assert script.load() is main
    for name in ("numpy", "pandas", "tokenizers", "torch", "torch_npu", "kernels", "bottleneck"):
        (tmp_path / f"{name}.py").write_text(f"open('{name} was imported', 'w')\n")
    (tmp_path / "own_plugin.py").write_text("import pandas, sys\nprint('' in sys.path)\n")
    picture(0).save(tmp_path / "a.png")
    call = ["-m", "cibr.cli", "search", "clip-tiny", ".", "a dog", "--plugin", "own_plugin"]
    found = subprocess.run([sys.executable, *call], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "a.png" in found.stdout and found.stdout.startswith("False\n")
    assert not list(tmp_path.glob("* was imported"))
