"""A model's folder: bit for bit there and back, whole whenever a save is killed; the shipped
checkpoints.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import TEXTS, picture

import cibr
from cibr.models import DualEncoder, io
from cibr.utils import shipped

each_kind = pytest.mark.parametrize("kind", ["tiny", "frozen", "clip"])


def equal(a, b):
    images = [picture(i) for i in range(3)]
    return torch.equal(a.embed_images(images), b.embed_images(images)) and torch.equal(
        a.embed_texts(TEXTS[:5]), b.embed_texts(TEXTS[:5])
    )


def trained(model):
    """The model after a step of training, in a way."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@each_kind
def test_a_saved_model_comes_back_bit_for_bit_and_is_replaced_whole(build, tmp_path, kind):
    (tmp_path / "history.csv").write_text("epoch\n")
    build(kind).save_pretrained(tmp_path)
    before, model = names(tmp_path), trained(build(kind))
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path))
    assert (again.kind, again.training, again.context) == (kind, False, model.context)
    assert again.processor.to_dict() == model.processor.to_dict()
    states = model.state_dict(), again.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (
        equal(model, again)
        and names(tmp_path) == before
        and not any("/." in f"/{name}" for name in before)
    )
    assert (tmp_path / "history.csv").read_text() == "epoch\n"
    assert json.loads((tmp_path / "cibr.json").read_text()).keys() == {"format", "kind", "settings"}


class Killed(BaseException):
    """Stands for a kill: nothing below may catch it."""


def stop_at(monkeypatch, owner, name, call, error):
    """Makes a function raise when it is called for the time of that number."""
    real, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def test_a_full_disk_leaves_the_old_model_and_no_rubbish(build, tmp_path, monkeypatch):
    old = build("tiny")
    old.save_pretrained(tmp_path)
    before = names(tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, io, "save_file", 1, OSError(28, "No space left on device"))
        with pytest.raises(
            ValueError, match="cannot write the model to .*No space left.*make room"
        ):
            trained(build("tiny")).save_pretrained(tmp_path)
    assert names(tmp_path) == before and equal(DualEncoder.from_pretrained(tmp_path), old)


@pytest.mark.parametrize(("kind", "step"), [("tiny", 1), ("frozen", 7)])
def test_a_save_killed_at_any_moment_leaves_one_model_or_the_other_whole(
    build, tmp_path, monkeypatch, kind, step
):
    old, new = build(kind), trained(build(kind))
    old.save_pretrained(tmp_path / "old")
    found = []
    for owner, name in ((io, "save_file"), (io.os, "fsync"), (Path, "rename"), (Path, "replace")):
        for call in range(1, 30, step):
            folder = tmp_path / f"{name}-{call}"
            shutil.copytree(tmp_path / "old", folder)
            with monkeypatch.context() as patch:
                patch.setattr(
                    io.shutil, "rmtree", lambda *_, **__: None
                )  # a kill cleans nothing up
                stop_at(patch, owner, name, call, Killed())
                try:
                    new.save_pretrained(folder)
                    break  # there was no call of that number
                except Killed:
                    pass
            loaded = DualEncoder.from_pretrained(folder)
            assert equal(loaded, new if name == "replace" else old)
            old.save_pretrained(folder)  # and the next save is as good as any
            assert equal(DualEncoder.from_pretrained(folder), old) and names(folder) == names(
                tmp_path / "old"
            )
            found.append(name)
    assert set(found) == {"save_file", "fsync", "rename", "replace"}


@each_kind
def test_a_missing_or_damaged_file_is_refused_by_name(build, tmp_path, kind):
    build(kind).save_pretrained(tmp_path / "good")
    files = ["cibr.json", "cibr.safetensors", "tokenizer.json", "preprocessor_config.json"]
    files += {"frozen": ["image_tower/model.safetensors"], "clip": ["config.json"]}.get(kind, [])
    for name in files:
        for spoil in (
            lambda file: file.write_bytes(file.read_bytes()[:50]),
            lambda file: file.unlink(),
        ):
            shutil.copytree(tmp_path / "good", tmp_path / "bad")
            spoil(tmp_path / "bad" / name)
            named = {"config.json": "bad", "image_tower/model.safetensors": "image_tower"}.get(
                name, name
            )
            with pytest.raises(
                ValueError, match=rf"/{named}' is missing or damaged .*save the model again"
            ):
                DualEncoder.from_pretrained(tmp_path / "bad")
            shutil.rmtree(tmp_path / "bad")


@pytest.mark.parametrize(("name", "beta"), [("clip-tiny", 0.0), ("cibr-tiny", 0.05)])
def test_a_shipped_checkpoint_names_unseen_drawings_and_says_how_it_was_made(name, beta):
    model, pairs = DualEncoder.from_pretrained(name), cibr.load_pairs("glyphs", "test")
    images, texts = model.embed_images(list(pairs.images())), model.embed_texts(pairs.texts())
    recalls = cibr.recall_at_k(images, texts, pairs.text_to_image())
    assert 0.25 < recalls["image_to_text_recall@1"] < 0.60
    assert 0.70 < recalls["image_to_text_recall@10"] < 0.95
    folder = shipped(f"checkpoints/{name}")
    about = json.loads((folder / "run.json").read_text())
    made_as = {key: about["configuration"][key] for key in ("beta", "seed", "dataset", "model")}
    assert made_as == {"beta": beta, "seed": 0, "dataset": "glyphs", "model": "tiny"}
    assert about["commit"] and sum(file.stat().st_size for file in folder.iterdir()) < 3e6
