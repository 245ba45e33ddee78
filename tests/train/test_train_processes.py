"""Processes that share a batch take the steps of one, and resume together."""

import json
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from processes import run_together
from small_runs import train, write_folder
from twin import CASES, model_of, plain_steps, real_steps, settings_of

from cibr.train import build_model, configure, fit, load_splits, loop


def take_steps(folder):
    """Saves the weights of a model and its loss after the steps of every case."""
    accelerator = Accelerator(cpu=True)
    for case in CASES:
        config = settings_of(case)
        model = model_of(config)
        if accelerator.process_index:  # every process starts from the weights of the first one
            torch.nn.init.zeros_(model.backbone.image_head[2].weight)
        state, _ = real_steps(config, model, accelerator)
        states = [dict(module.named_parameters()) for module in (model, state.loss_fn)]
        torch.save(states, folder / f"{case} {accelerator.process_index}")


def test_two_processes_take_the_steps_of_one_that_encodes_their_rows(tmp_path):
    run_together(2, take_steps, tmp_path)
    for case in CASES:
        config = settings_of(case)
        model = model_of(config)
        loss_fn, _ = plain_steps(config, model, n_processes=2)
        expected = [dict(module.named_parameters()) for module in (model, loss_fn)]
        for rank in range(2):
            found = torch.load(tmp_path / f"{case} {rank}")
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9, msg=case)


CROPPED = dict(penalty="mine", crop_scale=0.8, dropout=0.0)


def fit_together(folder):
    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    train(folder / "several", additions={"accelerator": accelerator}, **CROPPED)
    try:
        train(folder / f"checkpoints {rank}", additions={"accelerator": accelerator})
    except ValueError as error:
        (folder / f"refusal {rank}").write_text(str(error))


def test_a_run_learns_the_same_on_two_processes_which_need_the_same_checkpoint(
    tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(loop.RunFolder, "finish", None)
        with pytest.raises(TypeError):
            train(tmp_path / "checkpoints 0")
    run_together(2, fit_together, tmp_path)
    _, one = train(tmp_path / "one", **CROPPED)
    several = pd.read_csv(tmp_path / "several" / "history.csv")
    del one["seconds"], several["seconds"]
    pd.testing.assert_frame_equal(several, one, rtol=1e-3, atol=1e-3)
    for rank in range(2):
        message = (tmp_path / f"refusal {rank}").read_text()
        assert (
            "the processes have checkpoints of different steps" in message and "(6, 0)" in message
        )


LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 "
LAUNCH += "--mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1 "
LAUNCH += "-m cibr.cli train config.json"


@pytest.mark.slow
def test_a_run_of_accelerate_launch_resumes_after_sigterm(tmp_path):
    data = write_folder(tmp_path / "mine", train=8, validation=4, test=2)
    config = dict(dataset=data, beta=0.1, epochs=20, batch_size=4, output_dir=str(tmp_path / "out"))
    (tmp_path / "config.json").write_text(json.dumps(config))
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, *LAUNCH.split()]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        while process.poll() is None and not any(tmp_path.glob("out/checkpoints/*.pt")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) != 0
    assert "SIGTERM: the run is saved at step" in (tmp_path / "log").read_text()
    run_together(2, train_config, config)
    assert pd.read_csv(tmp_path / "out" / "history.csv")["step"].tolist() == [*range(2, 41, 2)]


def train_config(settings):
    config = configure(**settings)
    pairs, validation, _ = load_splits(config)
    fit(build_model(config, pairs), pairs, validation, config)
