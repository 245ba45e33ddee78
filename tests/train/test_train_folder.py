"""The output folder is for one run: what others put there stays."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch
from helpers import same
from small_runs import HELD_OUT, PAIRS, settings, small_model, stop_at, train

from cibr import DualEncoder, fit
from cibr.train.run_folder import RunFolder


def contents(folder):
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_a_second_run_on_a_folder_is_refused_until_the_first_one_has_ended(tmp_path):
    refused = pytest.raises(ValueError, match="another run is writing to output_dir .*: wait for")
    main, other = RunFolder(tmp_path, {}), RunFolder(tmp_path, {}, is_main=False)
    with main.locked(), other.locked(), refused:
        train(tmp_path, epochs=1)
    train(tmp_path, epochs=1)


def test_a_finished_run_is_loaded(tmp_path, capsys):
    model, history = train(tmp_path, epochs=1)
    before = contents(tmp_path)
    again, stored = train(tmp_path, epochs=1, save_steps=2)  # which changes no weight
    assert "holds this run, finished: its model is loaded" in capsys.readouterr().err
    assert same(model, again) and not again.training and stored.equals(history)
    assert contents(tmp_path) == before


def test_a_run_of_another_configuration_is_refused(tmp_path):
    train(tmp_path, epochs=1)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="holds a run with another beta, epochs: choose another"):
        train(tmp_path, epochs=2, beta=0.2)
    assert contents(tmp_path) == before


def test_a_run_with_a_setting_that_is_unknown_here_is_another_run(tmp_path):
    train(tmp_path, epochs=1)
    file = tmp_path / "run.json"
    record = json.loads(file.read_text())
    record["run"]["momentum"] = 0.5
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="holds a run with another momentum"):
        train(tmp_path, epochs=1)


def test_hidden_files_of_a_user_are_neither_removed_nor_written_through(tmp_path):
    folder = tmp_path / "run"
    mine = folder / ".checkpoints" / "thesis.tex"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    train(folder, epochs=1, save_steps=1)
    assert mine.read_text() == "mine" and [*mine.parent.iterdir()] == [mine]


@pytest.mark.parametrize("name", [".checkpoints", ".cibr.lock", ".run.json.part", "held_out"])
def test_a_link_in_the_folder_is_refused_and_not_written_through(tmp_path, name):
    target = tmp_path / "elsewhere"
    target.mkdir()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to(target)
    with pytest.raises(ValueError, match=f"has a link, '{name}', and a run writes through none"):
        train(folder, epochs=1)
    assert [*target.iterdir()] == [] and [*folder.iterdir()] == [folder / name]


def test_a_checkpoint_of_someone_else_is_refused_and_kept(tmp_path):
    torch.save({"step": 1}, tmp_path / "checkpoint.pt")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="files that no run made, such as 'checkpoint.pt'"):
        train(tmp_path, epochs=1)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_someone_else_beside_a_run_is_kept(tmp_path):
    train(tmp_path, epochs=1)
    torch.save({"step": 1}, tmp_path / "checkpoint.pt")
    before = contents(tmp_path)
    train(tmp_path, epochs=1)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_someone_else_in_an_unfinished_run_is_refused_and_kept(tmp_path):
    stop_at(5, tmp_path, save_steps=3)
    torch.save({"step": 1}, tmp_path / "checkpoint.pt")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="checkpoint.pt' is not of this run"):
        train(tmp_path, save_steps=3)
    assert contents(tmp_path) == before


def test_a_model_can_be_trained_twice_and_its_cell_run_again(build, tmp_path):
    """Heads with CCA, trained on more epochs in another folder: both folders load."""

    def configured(folder):
        options = dict(model="frozen", epochs=1, cca_ridge_image=3.0, cca_ridge_text=1.0)
        return settings(tmp_path / folder, **options)

    model = build("frozen")
    for folder in ("first", "second", "second"):
        fit(model, PAIRS, HELD_OUT, configured(folder))
        saved = DualEncoder.from_pretrained(tmp_path / folder)
        assert saved.dim == 32 and same(saved, model)
    first = DualEncoder.from_pretrained(tmp_path / "first")
    assert not same(first, model)


def test_a_run_that_was_loaded_leaves_the_model_as_one_that_was_trained(tmp_path):
    config = settings(tmp_path, epochs=1)
    model = small_model(config)
    fit(model, PAIRS, None, config)
    other = small_model(settings(tmp_path, seed=5))
    fit(other, PAIRS, None, config)
    assert same(other, model) and other.trained_on == model.trained_on


def test_a_finished_run_is_loaded_in_the_type_of_the_model(tmp_path):
    config = settings(tmp_path, epochs=1)
    fit(small_model(config), PAIRS, None, config)
    model = small_model(config).double()
    fit(model, PAIRS, None, config)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_a_run_on_pairs_with_other_positives_is_another_run(tmp_path):
    train(tmp_path, epochs=1)
    others = replace(PAIRS, labels=torch.arange(24) // 2)
    with pytest.raises(ValueError, match="holds a run with another training pairs"):
        train(tmp_path, others, epochs=1)


def test_a_link_to_a_log_is_no_hindrance(tmp_path):
    (tmp_path / "slurm.log").write_text("mine")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "slurm.log").symlink_to(tmp_path / "slurm.log")
    train(folder, epochs=1)
    assert (tmp_path / "slurm.log").read_text() == "mine"


def test_a_link_that_someone_puts_into_a_run_s_folder_is_refused(tmp_path):
    folder = tmp_path / "run"
    stop_at(5, folder, save_steps=3)
    (folder / ".history.csv.part").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="has a link, '.history.csv.part', and a run writes"):
        train(folder, save_steps=3)
    assert not (tmp_path / "elsewhere").exists()


def test_a_process_that_is_not_the_main_one_writes_and_removes_nothing(tmp_path):
    (tmp_path / "checkpoint.pt").write_text("of the main one")
    before = contents(tmp_path)
    folder = RunFolder(tmp_path, {}, is_main=False)
    folder.write_history(pd.DataFrame({"epoch": [1]}))
    folder.write_record({}, is_finished=True)
    folder.save_checkpoint({"step": 1})
    folder.remove_checkpoint()
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ['["run", "finished"]', "3", "null", '{"run": {}}', "not JSON"])
def test_a_run_json_of_others_is_no_record_of_a_run(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="files that no run made, such as 'run.json'"):
        train(tmp_path, epochs=1)
    assert contents(tmp_path) == {"run.json": text.encode()}
