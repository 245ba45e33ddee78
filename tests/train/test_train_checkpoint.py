"""A run's folder: code in a file is not run, a finished run is kept, one run at a time."""

import pickle

import pytest
import torch
from helpers import Crafted, same
from small_runs import train

from cibr.train import checkpoint
from cibr.train.checkpoint import Progress, RunFolder, newest_checkpoint


class Part:
    """Stands for a model or an optimiser."""

    def __init__(self, **state):
        self.state = state

    def state_dict(self):
        return self.state


def save(folder, step, **state):
    RunFolder(folder, {}).save({"part": Part(**state)}, Progress(10, step))


def test_crafted_and_damaged_checkpoints_are_passed_over(tmp_path):
    save(tmp_path, 1, good=True)
    folder = tmp_path / "checkpoints"
    torch.save({"model": Crafted(tmp_path / "owned")}, folder / "step-000000002.pt")
    (folder / "step-000000003.pt").write_bytes(
        pickle.dumps(Crafted(tmp_path / "owned"), protocol=2)
    )
    (folder / "step-000000004.pt").write_bytes(
        (folder / "step-000000001.pt").read_bytes()[:1000]
    )  # cut short
    with pytest.warns(UserWarning, match="cannot be read and is passed over") as warned:
        file, state = newest_checkpoint(tmp_path)
    assert file.name == "step-000000001.pt" and state["part"] == {"good": True} and len(warned) == 3
    assert not (tmp_path / "owned").exists()


def test_a_second_run_on_a_folder_is_refused_until_the_first_one_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PATIENCE", 0.1)
    first, folder = RunFolder(tmp_path, {}), str(tmp_path)
    refused = pytest.raises(
        ValueError, match=f"another run is writing to output_dir {folder!r}: wait for its end"
    )
    with (
        first.claimed(),
        RunFolder(tmp_path, {}, writes=False).claimed(),
        refused,
    ):  # a process of the same run
        train(tmp_path)
    train(tmp_path, epochs=1)
    assert not (tmp_path / ".lock").exists()


def test_a_finished_run_is_loaded_and_one_of_another_configuration_refused(tmp_path, capsys):
    model, history, folder = train(tmp_path / "out", epochs=2)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def spoil(model):
        torch.nn.init.zeros_(model.backbone.image_head[2].weight)

    capsys.readouterr()
    again, stored, _ = train(
        folder, prepare=spoil, epochs=2, checkpoint_every=3
    )  # which changes no weight
    assert capsys.readouterr().err.endswith(
        "holds this run, finished: its model and history are loaded\n"
    )
    assert same(model, again) and not again.training and stored.equals(history)
    message = r"a finished run of another configuration: beta \(0.1 there, 0.2 here\)\. "
    with pytest.raises(ValueError, match=message):
        train(folder, epochs=2, beta=0.2)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
