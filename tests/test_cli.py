"""The command `cibr`: what it prints and leaves behind, and one clear line for what goes wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
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
    names += [f"more-{i}.png" for i in range(14)]  # more than are in memory at once
    for i, name in enumerate(names):
        picture(i).save(photos / name)
    (photos / "deep" / "broken.jpeg").write_bytes(b"no image")
    (photos / "notes.txt").write_text("no image")
    call = ["search", str(folder), str(photos), "a red cat", "--top"]
    assert main([*call, "30"]) == 0
    printed, errors = capsys.readouterr()
    assert "broken.jpeg" in errors and errors.count("\n") == 1
    rows = [line.split() for line in printed.splitlines()[1:]]
    assert [int(rank) for rank, *_ in rows] == list(range(1, 21))
    assert {path for *_, path in rows} == {str(photos / name) for name in names}
    images = [open_rgb(Path(path)) for *_, path in rows]
    cosines = [float(cosine) for _, cosine, _ in rows]
    assert cosines == sorted(cosines, reverse=True)
    expected = model.embed_images(images) @ model.embed_texts(["a red cat"])[0]
    assert cosines == pytest.approx(expected.tolist(), abs=6e-4)
    assert main([*call, "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    queries = ["a red cat", str(photos / "a.png")]
    assert main(["search", str(folder), str(photos), *queries, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line in queries] == queries
    assert lines[3].split()[2] == rows[0][2] and lines[-1].split()[1:] == ["1.000", queries[1]]


def test_search_embeds_an_image_again_when_it_or_the_model_changes(
    tmp_path, monkeypatch, capsys, build, clip_folder
):
    monkeypatch.setattr("cibr.utils.cache_folder", lambda: tmp_path / "cache")
    photos = tmp_path / os.fsdecode(b"caf\xe9")
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
        lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
        return {Path(name).name: cosine for _, cosine, name in lines}, embedded[1:]  # no probe

    first, n_embedded = search(models[0])
    assert n_embedded == [5] and search(models[0]) == (first, [])
    other, n_embedded = search(models[1])
    assert n_embedded == [5] and other != first
    picture(9).save(photos / "1.png")
    (photos / "2.png").unlink()
    changed, n_embedded = search(models[0])
    assert n_embedded == [1] and changed.keys() == first.keys() - {"2.png"}
    assert [name for name in changed if changed[name] != first[name]] == ["1.png"]
    for index in (tmp_path / "cache" / "search").iterdir():
        index.write_bytes(index.read_bytes()[:40])
    assert search(models[0]) == (changed, [4])  # damaged files are made again
    picture(5).save(photos / os.fsdecode(b"caf\xe9.png"))
    assert "caf\\udce9.png" in search(models[0])[0]
    Path(models[0]).rename(tmp_path / "before")
    Path(models[1]).rename(models[0])  # another model of the same name and width
    assert search(models[0])[1] == [5]
    assert search(clip_folder)[1] == [5]  # a CLIP of transformers


def test_a_stopped_search_keeps_what_it_has_embedded(tmp_path, monkeypatch, build):
    monkeypatch.setattr("cibr.utils.cache_folder", lambda: tmp_path / "cache")
    (tmp_path / "photos").mkdir()
    for i in range(40):
        picture(i).save(tmp_path / "photos" / f"{i}.png")
    seen, embed = [], DualEncoder.embed_images

    def stopped(model, images):
        seen.append(len(images))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return embed(model, images)

    monkeypatch.setattr(DualEncoder, "embed_images", stopped)
    call = [
        "search",
        str(build("tiny").save_pretrained(tmp_path / "tiny")),
        str(tmp_path / "photos"),
    ]
    assert main([*call, "a dog"]) == 130
    assert main([*call, "a dog"]) == 0 and seen == [1, 16, 16, 1, 16, 8]


def test_evaluate_prints_the_first_model_minus_the_second_on_the_limited_sets(
    small, clip_folder, tmp_path, capsys, build
):
    other = str(build("tiny").save_pretrained(tmp_path / "tiny"))
    call = ["evaluate", clip_folder, "--suite", "small", "--compare-with", other, "--limit", "9"]
    assert main([*call, "--output-dir", str(tmp_path / "out"), "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    files = {
        model: tmp_path / "out" / quote(model.strip("/"), safe="") / "small" / "rows.csv"
        for model in (clip_folder, other)
    }
    rows = [pd.read_csv(file).set_index(["dataset", "metric"]) for file in files.values()]
    assert rows[0].loc["captions", "n"].min() == 9
    assert printed.count("mean of 2") == 3
    _, _, compared = printed.partition(f"{clip_folder} minus {other}")
    differences = 100 * (rows[0]["value"] - rows[1]["value"]).loc["captions"]
    metric = differences.abs().idxmax()
    line = next(line for line in compared.splitlines() if line.startswith(metric))
    assert differences[metric] != 0 and line.split()[1] == f"{differences[metric]:+.1f}"


def test_evaluate_takes_a_data_set_and_says_how_many_images_it_has(small, clip_folder, capsys):
    data = str(small / "wds_captions")
    assert main(["evaluate", clip_folder, "--data", data]) == 0
    printed = capsys.readouterr().out
    assert f"on {data}" in printed and "text_to_image_recall@10" in printed
    assert "captions: 14 images for test, retrieval" in printed


def test_train_merges_a_file_and_options_and_prints_the_last_row_of_the_history(
    monkeypatch, tmp_path, capsys
):
    seen, history = [], pd.DataFrame({"epoch": [1, 2], "clip_loss": [3.0, 2.5]})
    parts = noise_pairs(56), noise_pairs(49, split="validation")
    monkeypatch.setattr(data, "load_parts", lambda *_: parts)
    monkeypatch.setattr(train, "build_model", lambda config, pairs: None)
    monkeypatch.setattr(train, "fit", lambda *given: seen.append(given[-1]) or history)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"beta": 0.2, "seed": 3}))
    options = ["--seed", "4", "--loss-options", '{"sample": true}', "--learning-rate=0.01"]
    options += ["--batch-size", "64", "--no-learn-temperature"]
    assert main(["train", str(file), *options, "--output-dir", str(tmp_path / "run")]) == 0
    (config,) = seen
    assert (config.beta, config.seed, config.learning_rate) == (0.2, 4, 0.01)
    assert config.loss_options == {"sample": True} and not config.learn_temperature
    assert config.batch_size == 64 and config.dataset == "glyphs"
    printed, errors = capsys.readouterr()
    assert "noise: 56 images for train, 49 for validation" in errors
    assert "recalls of 49 images for validation say little" in errors
    assert "clip_loss    2.5" in printed and str(tmp_path / "run") in printed
    file.write_text(json.dumps({"configuration": vars(config), "run": {}}))
    assert main(["train", str(file), "--seed", "5"]) == 0
    assert seen[1] == replace(config, seed=5, output_dir=seen[1].output_dir)
    assert seen[1].output_dir != config.output_dir
    assert main(["train", str(file), "--preset", "few-photos"]) == 1
    assert "sets everything: leave out --preset" in capsys.readouterr().err


def test_a_stopped_run_ends_with_its_code_and_a_line(monkeypatch, capsys):
    def stopped(error):
        def load_parts(*_):
            raise error

        monkeypatch.setattr(data, "load_parts", load_parts)
        return main(["train"]), capsys.readouterr().err

    assert stopped(KeyboardInterrupt("saved in runs/x")) == (130, "cibr: stopped by Ctrl-C\n")
    assert stopped(SystemExit(143)) == (143, "")
    assert stopped(ValueError("two\n  lines")) == (1, "cibr: two lines\n")
    assert stopped(TypeError("odd")) == (1, "cibr: TypeError: odd (--debug shows where)\n")
    with pytest.raises(TypeError, match="odd"):
        main(["train", "--debug"])


@pytest.mark.parametrize(
    ("call", "code", "message"),
    [
        (["evaluate", "x", "--suite", "characters", "--data", "y"], 2, "--data: not allowed with"),
        ([], 2, "the following arguments are required"),
        (["compare", "--dataset", "x"], 1, "compare is gone: cibr train --dataset FOLDER"),
        (["train", "--preset", "few-pairs"], 1, "'few-pairs' is gone: use 'few-photos'"),
        (["train", "--max-skipped=3"], 1, "--max-skipped is gone: unusable samples"),
        (["evaluate", "clip-tiny", "--suite", "my.yaml"], 1, "my.yaml: YAML suites are gone"),
        (["evaluate", "clip-tiny", "--limit", "ten"], 2, "--limit: invalid int value: 'ten'"),
        (["evaluate", "{tmp}"], 1, "{tmp}"),
        (["search", "clip-tiny", "{tmp}", " "], 1, "the text to search for is empty"),
        (["search", "clip-tiny", "{tmp}", "a dog"], 1, "no image in '{tmp}'"),
        (["search", "clip-tiny", "{tmp}/none", "a dog"], 1, "no image in '{tmp}/none'"),
        (["search", "clip-tiny", "{tmp}", "dog" * 200], 1, "no image in '{tmp}'"),
        (["search", "clip-tiny", "{tmp}", "a dog", "--top", "0"], 1, "--top is 0: give a number"),
        (
            ["search", "clip-tiny", "{tmp}", "a dog", "--plugin", "absent"],
            1,
            "--plugin absent: [Errno 2] No such file",
        ),
        (["search", "clip-tiny", "{tmp}", "a dog", "--device", "gpu"], 1, "device string: gpu"),
        (["search", "clip-tiny", "{tmp}", "{tmp}/a.jpg"], 1, "there is no image '{tmp}/a.jpg'"),
        (
            ["evaluate", "clip-tiny", "--output-dir", "/proc/x"],
            1,
            "cannot write results to '/proc/x",
        ),
        (["train", "--penalty", "vmff"], 1, "'vmff', did you mean 'vmf'"),
        (["train", "{tmp}/none.json"], 1, "none.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_what_is_wrong_is_said_in_a_line(call, code, message, tmp_path, capsys):
    assert main([word.format(tmp=tmp_path) for word in call]) == code
    printed, errors = capsys.readouterr()
    assert message.format(tmp=tmp_path) in errors and not printed
    assert "Traceback" not in errors and (code == 2 or errors.count("\n") == 1)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cibr {cibr.__version__}\n"


def test_help_gives_the_meaning_and_the_default_of_a_setting(capsys):
    assert main(["train", "--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "weight of the penalty; 0 is CLIP (default 0.0)" in printed


def test_of_the_current_folder_a_command_imports_named_plugins_alone(tmp_path):
    [script] = entry_points(group="console_scripts", name="cibr")
    assert script.load() is main
    for name in ("numpy", "pandas", "tokenizers", "torch", "torch_npu", "kernels", "bottleneck"):
        (tmp_path / f"{name}.py").write_text(f"open('{name} was imported', 'w')\n")
    plugin = "import atexit, pandas, sys\natexit.register(lambda: print('' in sys.path))\n"
    (tmp_path / "own_plugin.py").write_text(plugin)
    picture(0).save(tmp_path / "a.png")
    call = ["-m", "cibr.cli", "search", "clip-tiny", ".", "a dog", "--plugin", "own_plugin"]
    found = subprocess.run([sys.executable, *call], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    assert "a.png" in found.stdout and found.stdout.endswith("\nFalse\n")
    assert not list(tmp_path.glob("* was imported"))
