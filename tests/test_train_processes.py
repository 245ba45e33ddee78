"""W processes with a batch of B / W take the steps of one process with B; one that fails ends them all."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from accelerate import notebook_launcher
from conftest import TEXTS, noise_pairs
from processes import finish, free_port, run_together, start
from test_train_config import write_folder

from cibr import DualEncoder, fit
from cibr.inputs import prepare
from cibr.losses import CIBRLoss
from cibr.train import build_model, configure, load_splits, loop
from cibr.train.step import CriticSteps, contrastive_backward

PAIRS = noise_pairs(12)
ESTIMATORS = ["vmf", "gaussian", "mine", "club", "prototype"]


def take_step(estimator, file):
    """Saves the gradients of a step on all pairs, of which this process holds its share."""
    accelerator = loop._processes()
    torch.manual_seed(2)
    model = DualEncoder.tiny(TEXTS, dim=16, width=4, learn_variance=estimator == "gaussian").double().train()
    model.set_temperature(0.1, learn=True)
    loss_fn = CIBRLoss(0.2, estimator, kappa_e=50.0, dims=(16, 256, 128), n_labels=12).double()
    rows = torch.arange(len(PAIRS)).chunk(accelerator.num_processes)[accelerator.process_index]
    critics = None
    if loss_fn.critics is not None:
        critics = CriticSteps(torch.optim.SGD(loss_fn.parameters(), lr=0.01), n_steps=2)
    generator = torch.Generator().manual_seed(3)
    options = dict(beta=0.2, generator=generator, critics=critics, micro_batch_size=2)
    terms = contrastive_backward(model, loss_fn, prepare(model, PAIRS)[rows, rows], accelerator, **options)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"term {name}": value.detach() for name, value in terms.items()} | loss_fn.state_dict()
    torch.save(found, file.with_suffix(f".{accelerator.process_index}"))


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_processes_equal_one(world, estimator, tmp_path):
    assert run_together(1, take_step, estimator, tmp_path / "one") == [0]
    assert run_together(world, take_step, estimator, tmp_path / "several") == [0] * world
    expected = torch.load(tmp_path / "one.0")
    assert expected["log_logit_scale"] != 0 and expected["term penalty_loss"] != 0
    for rank in range(world):
        found = torch.load(tmp_path / f"several.{rank}")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():  # float64: sums in another order
            assert torch.allclose(found[name], tensor, rtol=1e-10, atol=1e-12), name


def settings(folder, **options):
    run = dict(dropout=0.0, beta=0.1, epochs=3, batch_size=6, learning_rate=1e-3, learn_temperature=True)
    return configure(output_dir=str(folder), **(run | options))


def train(folder, n_pairs=16, options=(), fail=False):
    """A whole run that notes the order of the captions that it saw."""
    accelerator, seen, real = loop._processes(), [], loop.contrastive_backward

    def noted(model, loss_fn, batch, accelerator, **rest):
        seen.append(accelerator.gather(batch.labels))
        if fail and accelerator.process_index == 1 and len(seen) == 3:
            raise RuntimeError("the second process has had enough")
        return real(model, loss_fn, batch, accelerator, **rest)

    loop.contrastive_backward = noted
    pairs, config = noise_pairs(n_pairs, n_captions=2), settings(folder, **dict(options))
    model = build_model(config, pairs)
    if accelerator.process_index:  # fit gives every process the weights of the first
        torch.nn.init.zeros_(model.backbone.image_head[2].weight)
    fit(model, pairs, noise_pairs(8, split="validation"), config, accelerator)
    if accelerator.is_main_process:
        torch.save(torch.stack(seen), folder / "order")


@pytest.mark.parametrize(("world", "estimator"), [(2, "vmf"), (3, "mine")])
def test_a_whole_run_sees_the_same_batches_and_learns_the_same_on_any_number_of_processes(
    world, estimator, tmp_path
):
    options = {"estimator": estimator}
    for name, n in (("one", 1), ("several", world)):
        assert run_together(n, train, tmp_path / name, 16, options) == [0] * n
    orders = [torch.load(tmp_path / name / "order") for name in ("one", "several")]
    assert torch.equal(*orders) and orders[0].shape == (6, 6)
    one, several = (pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "several"))
    columns = one.columns.drop("seconds")
    pd.testing.assert_frame_equal(several[columns], one[columns], rtol=1e-3, atol=1e-3)
    model, twin = (DualEncoder.from_pretrained(tmp_path / name) for name in ("one", "several"))
    start = build_model(settings(tmp_path, estimator=estimator), noise_pairs(16, n_captions=2))
    for name, weight in model.state_dict().items():  # Adam makes rounding visible where a gradient is near zero
        moved = (weight - start.state_dict()[name]).norm()
        assert (twin.state_dict()[name] - weight).norm() <= 0.02 * moved + 1e-6, name


@pytest.mark.parametrize(
    ("world", "n_pairs", "options", "message"),
    [
        (3, 2, {}, "a batch of 2 pairs cannot be shared by 3 processes"),
        (2, 16, {"batch_size": 5}, "batch_size 5 cannot be shared equally by 2 processes.*multiple such as 4"),
    ],
)
def test_a_batch_that_the_processes_cannot_share_is_refused(world, n_pairs, options, message, tmp_path):
    assert set(run_together(world, train, tmp_path, n_pairs, options, log=tmp_path / "log")) == {1}
    assert re.search(message, (tmp_path / "log").read_text())


def test_one_process_that_fails_ends_the_run_with_its_error(tmp_path):
    started = time.monotonic()
    assert set(run_together(2, train, tmp_path, 16, (), True, log=tmp_path / "log")) == {1}
    assert time.monotonic() - started < 30
    assert "RuntimeError: the second process has had enough" in (tmp_path / "log").read_text()


def launch_notebook(folder, fail):
    """What a notebook's cell does; `fit` finds the processes by itself."""
    notebook_launcher(train, (folder, 16, (), fail), num_processes=2, use_port=free_port())


def test_notebook_launcher_trains_on_two_processes_and_ends_with_the_error_of_one(tmp_path):
    for fail in (False, True):
        process = start(launch_notebook, tmp_path / str(fail), fail, log=tmp_path / "log")
        assert finish(process) == int(fail), (tmp_path / "log").read_text()
    assert len(pd.read_csv(tmp_path / "False" / "history.csv")) == 3
    assert torch.load(tmp_path / "False" / "order").shape == (6, 6)
    assert "RuntimeError: the second process has had enough" in (tmp_path / "log").read_text()


def launch(folder, config, *, kill_when=None):
    """`accelerate launch` of two processes, which share the CPU where there are no GPUs; with `kill_when`, SIGTERM
    once that file is there."""
    (folder / "config.json").write_text(json.dumps(config))
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "-m", "cibr.train", "config.json"]
    with (folder / "log").open("w") as log:
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=quiet)
        while kill_when and process.poll() is None and not any(folder.glob(kill_when)):
            time.sleep(0.01)
        if kill_when:
            process.send_signal(signal.SIGTERM)
        process.wait(timeout=300)
    return process.returncode, (folder / "log").read_text()


@pytest.mark.slow
def test_accelerate_launch_trains_as_one_process_does_and_goes_on_after_sigterm(tmp_path):
    data = write_folder(tmp_path / "mine", train=24, validation=10)
    config = dict(dataset=str(data), beta=0.1, epochs=25, batch_size=8, dropout=0.0, checkpoint_every=1)
    (tmp_path / "launched").mkdir()
    launched = config | {"output_dir": "out"}
    code, log = launch(tmp_path / "launched", launched, kill_when="out/checkpoints/*.pt")
    assert code != 0 and "SIGTERM: the run is saved at step" in log
    code, log = launch(tmp_path / "launched", launched)
    assert code == 0, log
    assert log.count("image_to_text_recall@5") == 1  # the first process alone prints
    assert run_together(1, train_config, config | {"output_dir": str(tmp_path / "one")}) == [0]
    several, one = (pd.read_csv(tmp_path / n / "history.csv") for n in ("launched/out", "one"))
    assert several["step"].tolist() == one["step"].tolist()
    first = slice(4)  # float32, summed in another order, drifts apart with the steps
    assert several["loss"][first].tolist() == pytest.approx(one["loss"][first].tolist(), rel=1e-2)


def train_config(config):
    config = configure(**config)
    train, validation, _ = load_splits(config)
    fit(build_model(config, train), train, validation, config)
