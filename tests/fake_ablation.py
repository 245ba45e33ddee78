"""A small ablation without a training: a table of rows and the folders that its runs would have left."""

import json

import numpy as np
import pandas as pd
import torch

from cibr.evaluate import Outcome, Task
from cibr.results import append_row
from cibr.sweep import read_arms, run_id
from cibr.sweep.choice import VALIDATION

TASKS = (
    Task("one"),
    Task("left", group="sides"),
    Task("right", group="sides"),
    Task("captions", "retrieval"),
    Task("captions", "retrieval", "test_characters"),
)
N = 200  # pictures a set


def settings_of(arm, seed=0, **more):
    return {"arm": arm, "seed": seed, "dataset": "flickr8k", "model": "frozen", "suites": ["small"]} | more


def add_run(table, runs, settings, skill=0.5, status="ok", **metrics):
    """A row, and the folder of a run whose hits come with a chance of `skill`; pictures are as hard for all."""
    name = run_id(settings)
    about = {name: settings.get(name, default) for name, default in dict(arm="", beta=0.0, seed=0).items()}
    row = {"run": name, "configuration": json.dumps(settings), "status": status} | about
    if status == "ok":
        row |= {"estimator": settings.get("estimator", "vmf")} | dict.fromkeys(VALIDATION, skill) | metrics
        write_outcomes(runs / name / "small", skill, settings["seed"])
        write_history(runs / name, skill)
    append_row(table, row)
    return name


def write_outcomes(folder, skill, seed):
    folder.mkdir(parents=True)
    for i, task in enumerate(TASKS):
        hard = np.random.default_rng(i).uniform(size=N) + np.random.default_rng(seed).normal(0, 0.02, N)
        ranks = torch.from_numpy(np.where(hard < skill, 0, 20))
        items = {"labels": torch.arange(N) % 8, "ranks": ranks, "n_classes": torch.tensor(8)}
        if task.kind == "retrieval":
            items = {f"{side}_ranks": ranks.clone() for side in ("image", "text")}
            items |= {f"{side}_average_precisions": 1 / (1 + ranks.double()) for side in ("image", "text")}
            items["text_to_image"] = torch.arange(N)
        Outcome(task.kind, items, f"asked {task.title}").save(folder / task.file, "identity")


def write_history(folder, skill, n_epochs=4, residual=717.179703, **columns):
    rows = pd.DataFrame({"epoch": range(1, n_epochs + 1)})
    rows = rows.assign(step=5 * rows["epoch"], clip_loss=3.0, mi_lower_bound_nats=2.0, beta=0.1)
    rows = rows.assign(residual_image_nats=residual, residual_text_nats=residual)
    for side in ("image_to_text", "text_to_image"):
        rows[f"{side}_recall@1"] = skill * rows["epoch"] / n_epochs
    rows.assign(**columns).to_csv(folder / "history.csv", index=False)


def four_arms(folder):
    """Rows of CLIP, a control and two arms of ours; CIBR b is the better one on validation."""
    table = folder / "ablation.csv"
    for arm, skill, beta in (
        ("CLIP", 0.5, 0.0),
        ("noise only", 0.4, 0.0),
        ("CIBR a", 0.3, 0.1),
        ("CIBR b", 0.6, 0.1),
    ):
        add_run(table, folder / "runs", settings_of(arm, beta=beta), skill=skill)
    return read_arms(table)
