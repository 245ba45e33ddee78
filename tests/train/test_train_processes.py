"""W processes with a batch of B / W take the steps of one process with B; one that fails ends them
all.
"""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
from helpers import TEXTS, noise_pairs
from processes import run_together
from small_runs import HELD_OUT, settings, small_model, step, write_folder
from torch.multiprocessing import ProcessRaisedException

from cibr import DualEncoder, fit
from cibr.losses import CIBRLoss
from cibr.models.features import prepare
from cibr.train import build_model, configure, load_splits, loop

PAIRS = noise_pairs(12)


def take_step(penalty, file):
    """Saves the gradients of a step on all pairs, of which this process holds its share."""
    accelerator = loop._launched_processes()
    torch.manual_seed(2)
    model = DualEncoder.tiny(TEXTS, dim=16, width=4).double().train()
    model.set_temperature(0.1, learn=True)
    loss_fn = CIBRLoss(0.2, penalty, kappa_e=50.0, sample=True, dims=(16, 256, 128)).double()
    rows = torch.arange(len(PAIRS)).chunk(accelerator.num_processes)[accelerator.process_index]
    critics = torch.optim.SGD(loss_fn.critics.parameters(), lr=0.01) if penalty == "mine" else None
    batch = prepare(model, PAIRS)[rows, rows]
    terms, found = step(model, loss_fn, batch, critics, accelerator, micro_batch_size=2)
    found |= {
        f"term {name}": value.detach() for name, value in terms.items()
    } | loss_fn.state_dict()
    torch.save(found, file.with_suffix(f".{accelerator.process_index}"))


@pytest.mark.parametrize("penalty", ["vmf", "mine"])
def test_processes_equal_one(penalty, tmp_path):
    run_together(1, take_step, penalty, tmp_path / "one")
    run_together(2, take_step, penalty, tmp_path / "several")
    expected = torch.load(tmp_path / "one.0")
    assert expected["log_logit_scale"] != 0 and expected["term penalty_loss"] != 0
    for rank in range(2):
        found = torch.load(tmp_path / f"several.{rank}")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():  # float64: sums in another order
            assert torch.allclose(found[name], tensor, rtol=1e-10, atol=1e-12), name


def train(folder, options=(), fail=False):
    """A whole run that notes the labels of its batches in their order."""
    accelerator, seen, real = loop._launched_processes(), [], loop.train_step

    def noted(parts, batch, *rest):
        seen.append(accelerator.gather(batch.labels))
        if fail and accelerator.process_index == 1 and len(seen) == 3:
            raise RuntimeError("the second process has had enough")
        real(parts, batch, *rest)

    loop.train_step = noted
    config = settings(folder, **(dict(dropout=0.0, epochs=3, batch_size=6) | dict(options)))
    pairs = noise_pairs(16, n_captions=2)
    model = small_model(config, pairs)
    if accelerator.process_index:  # fit gives every process the weights of the first
        torch.nn.init.zeros_(model.backbone.image_head[2].weight)
    fit(model, pairs, HELD_OUT, config, accelerator)
    if accelerator.is_main_process:
        torch.save(torch.stack(seen), folder / "order")


@pytest.mark.parametrize("penalty", ["vmf", "mine", "rafa"])
def test_a_whole_run_sees_the_same_batches_and_learns_the_same_on_any_number_of_processes(
    penalty, tmp_path
):
    options = {"penalty": penalty}
    if penalty == "rafa":
        options |= dict(contrastive="hycd", crop_scale=0.8, interpolation=0.1)
    for name, n in (("one", 1), ("several", 2)):
        run_together(n, train, tmp_path / name, options)
    orders = [torch.load(tmp_path / name / "order") for name in ("one", "several")]
    assert torch.equal(*orders) and orders[0].shape == (6, 6)
    one, several = (pd.read_csv(tmp_path / name / "history.csv") for name in ("one", "several"))
    columns = one.columns.drop("seconds")
    pd.testing.assert_frame_equal(several[columns], one[columns], rtol=1e-3, atol=1e-3)
    model, twin = (DualEncoder.from_pretrained(tmp_path / name) for name in ("one", "several"))
    start = small_model(settings(tmp_path, dropout=0.0), noise_pairs(16, n_captions=2)).state_dict()
    for (
        name,
        weight,
    ) in model.state_dict().items():  # Adam makes rounding visible where a gradient is near zero
        moved = (weight - start[name]).norm()
        assert (twin.state_dict()[name] - weight).norm() <= 0.02 * moved + 1e-6, name


def test_one_process_that_fails_ends_the_run_with_its_error(tmp_path):
    with pytest.raises(
        ProcessRaisedException, match="RuntimeError: the second process has had enough"
    ):
        run_together(2, train, tmp_path / "out", (), True)


LAUNCH = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no "
LAUNCH += "--dynamo_backend no --num_cpu_threads_per_process 1 -m cibr train config.json"


@pytest.mark.slow
def test_accelerate_launch_trains_as_one_process_does_and_goes_on_after_sigterm(tmp_path):
    data = write_folder(tmp_path / "mine", train=8, validation=4, test=2)
    config = dict(dataset=str(data), beta=0.1, epochs=20, batch_size=4, dropout=0.0)
    out, one = (dict(config, output_dir=str(tmp_path / name)) for name in ("out", "one"))
    (tmp_path / "config.json").write_text(json.dumps(out))
    with (tmp_path / "log").open("w") as log:
        quiet = os.environ | {"TQDM_DISABLE": "1"}
        command = [sys.executable, *LAUNCH.split()]
        process = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, env=quiet)
        while process.poll() is None and not any(tmp_path.glob("out/checkpoints/*.pt")):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) != 0
    assert "SIGTERM: the run is saved at step" in (tmp_path / "log").read_text()
    run_together(2, train_config, out)  # the launcher's processes without its start
    run_together(1, train_config, one)
    several, one = (pd.read_csv(tmp_path / name / "history.csv") for name in ("out", "one"))
    assert several["step"].tolist() == one["step"].tolist()
    first = slice(4)  # float32, summed in another order, drifts apart with the steps
    assert several["loss"][first].tolist() == pytest.approx(one["loss"][first].tolist(), rel=1e-2)


def train_config(config):
    config = configure(**config)
    train, validation, _ = load_splits(config)
    fit(build_model(config, train), train, validation, config)
