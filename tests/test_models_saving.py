"""A model's folder: bit for bit there and back, refused by name when damaged, whole whenever a save is killed."""

import json
import shutil

import pytest
import torch
from conftest import TEXTS, picture
from transformers import AutoTokenizer, CLIPModel

from cibr.models import DualEncoder, saving

KINDS = ("tiny", "frozen", "clip")


def embeddings(model):
    return model.embed_images([picture(i) for i in range(3)]), model.embed_texts(TEXTS[:5])


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(embeddings(a), embeddings(b), strict=True))


def changed(model):
    """The same model after a step of training, in a way."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("learn_variance", [False, True])
def test_a_saved_model_comes_back_bit_for_bit(build, tmp_path, kind, learn_variance):
    model = changed(build(kind, learn_variance=learn_variance))
    again = DualEncoder.from_pretrained(model.save_pretrained(tmp_path / "model"))
    assert (again.kind, again.learn_variance, again.training) == (kind, learn_variance, False)
    before, after = model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert equal(model, again)
    assert again.processor.to_json_string() == model.processor.to_json_string()
    assert again.context == model.context
    assert again.logit_scale.item() == model.logit_scale.item()


def test_a_saved_clip_reads_as_a_clip_model_of_transformers(build, tmp_path):
    model = changed(build("clip"))
    model.set_temperature(0.05, learn=True)
    model.save_pretrained(tmp_path)
    clip = CLIPModel.from_pretrained(tmp_path)
    assert clip.logit_scale.exp().item() == pytest.approx(20)
    assert torch.equal(clip.visual_projection.weight, model.backbone.clip.visual_projection.weight)
    assert AutoTokenizer.from_pretrained(tmp_path)(TEXTS[0]) == model.tokenizer(TEXTS[0])
    assert not any(
        "clip" in name for name in saving.load_file(tmp_path / saving.WEIGHTS)
    )  # no weight is there twice


def test_a_save_replaces_the_model_and_leaves_other_files(build, tmp_path):
    (tmp_path / "history.csv").write_text("epoch\n")
    build("frozen").save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    second = changed(build("frozen"))
    second.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert not any(name.startswith(".") for name in names)
    assert (tmp_path / "history.csv").read_text() == "epoch\n"
    assert equal(DualEncoder.from_pretrained(tmp_path), second)


class Killed(BaseException):
    """Stands for a kill: nothing below may catch it."""


def calls_of(monkeypatch, module, name, stop_at, error):
    """Makes the call number `stop_at` of a function raise; returns the list of the calls so far."""
    real, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == stop_at:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def test_a_full_disk_leaves_the_old_model_and_no_rubbish(build, tmp_path, monkeypatch):
    old, new = build("tiny"), changed(build("tiny"))
    old.save_pretrained(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        calls_of(patch, saving, "save_file", 1, OSError(28, "No space left on device"))
        with pytest.raises(ValueError, match="cannot write the model to .*No space left.*make room"):
            new.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert equal(DualEncoder.from_pretrained(tmp_path), old)


@pytest.mark.parametrize("kind", ["tiny", "clip"])
def test_a_save_killed_at_any_file_leaves_one_model_or_the_other_whole(build, tmp_path, monkeypatch, kind):
    models = {"old": build(kind), "new": changed(build(kind))}
    models["old"].save_pretrained(tmp_path / "old")
    outcomes = []
    for moment in range(1, 30):
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "old", folder)
        with monkeypatch.context() as patch:
            patch.setattr(saving.shutil, "rmtree", lambda *_, **__: None)  # a kill cleans nothing up
            calls = calls_of(patch, saving.os, "link", moment, Killed())
            try:
                models["new"].save_pretrained(folder)
            except Killed:
                pass
            else:
                assert moment > len(calls)
                break
        loaded = DualEncoder.from_pretrained(folder)
        outcomes += [name for name, model in models.items() if equal(loaded, model)]
        assert len(outcomes) == moment
        models["old"].save_pretrained(folder)  # and the next save is as good as any
        assert equal(DualEncoder.from_pretrained(folder), models["old"])
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".part"]
    assert outcomes and set(outcomes) == {"new"}  # links are made once the new model is complete


@pytest.mark.parametrize("name", ["save_file", "_sync"])
def test_a_save_killed_before_it_is_complete_leaves_the_old_model(build, tmp_path, monkeypatch, name):
    old, new = build("tiny"), changed(build("tiny"))
    old.save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "rmtree", lambda *_, **__: None)
        calls_of(patch, saving, name, 1, Killed())
        with pytest.raises(Killed):
            new.save_pretrained(tmp_path)
    assert any(path.name.startswith(".saving") for path in tmp_path.iterdir())
    assert equal(DualEncoder.from_pretrained(tmp_path), old)
    new.save_pretrained(tmp_path)
    assert equal(DualEncoder.from_pretrained(tmp_path), new)
    assert not any(path.name.startswith(".") for path in tmp_path.iterdir())


def test_a_save_killed_while_it_cleans_up_leaves_the_new_model(build, tmp_path, monkeypatch):
    old, new = build("tiny"), changed(build("tiny"))
    old.save_pretrained(tmp_path)

    def half_remove(folder, **_):
        for file in list(folder.glob("cibr.*")):
            file.unlink()
        raise Killed

    with monkeypatch.context() as patch:
        real = saving.shutil.rmtree
        patch.setattr(saving.shutil, "rmtree", lambda f, **o: half_remove(f) if f.exists() else real(f, **o))
        with pytest.raises(Killed):
            new.save_pretrained(tmp_path)
    assert equal(DualEncoder.from_pretrained(tmp_path), new)


def test_a_file_system_without_links_is_written_too(build, tmp_path, monkeypatch):
    calls_of(monkeypatch, saving.os, "link", 1, OSError("no links here"))
    model = build("tiny")
    assert equal(DualEncoder.from_pretrained(model.save_pretrained(tmp_path)), model)


def damage(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_or_damaged_file_is_refused_by_name(build, tmp_path, kind):
    build(kind).save_pretrained(tmp_path / "good")
    files = ["cibr.json", "cibr.safetensors", "tokenizer.json", "preprocessor_config.json"]
    files += {"tiny": [], "frozen": ["image_tower/model.safetensors", "text_tower/config.json"]}.get(
        kind, ["model.safetensors", "config.json"]
    )
    for name in files:
        for spoil in (damage, type(tmp_path).unlink):
            folder = tmp_path / "bad"
            shutil.copytree(tmp_path / "good", folder)
            spoil(folder / name)
            with pytest.raises(ValueError, match=r"(?s)bad.*(missing|damaged).*save the model again"):
                DualEncoder.from_pretrained(folder)
            shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [("[]", "format"), ('{"format": 99}', "format 99 and this version reads 1"), ('{"format": 1}', "damaged")],
)
def test_a_configuration_of_another_kind_is_refused(build, tmp_path, config, message):
    build("tiny").save_pretrained(tmp_path)
    (tmp_path / "cibr.json").write_text(config)
    with pytest.raises(ValueError, match=rf"cibr\.json.*{message}"):
        DualEncoder.from_pretrained(tmp_path)


def test_weights_of_another_shape_are_refused(build, tmp_path):
    build("tiny").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "cibr.json").read_text())
    config["settings"]["dim"] = 8
    (tmp_path / "cibr.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"cibr\.safetensors.* does not fit cibr\.json: 2 weights differ"):
        DualEncoder.from_pretrained(tmp_path)


def test_a_folder_that_cannot_be_written_is_refused(build, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write the model to .*choose another output_dir"):
        build("tiny").save_pretrained(tmp_path / "file" / "model")
