"""Checkpoint files: a failed write leaves what was there, and a file that carries code is not run."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from cibr import DualEncoder
from cibr.train.checkpoint import newest_checkpoint, write_checkpoint


@pytest.mark.parametrize("room", [0, 1000, 100_000])
def test_a_write_that_fails_at_any_place_leaves_the_last_checkpoint_and_no_part(tmp_path, monkeypatch, room):
    state = {"weights": torch.arange(50_000.0)}
    write_checkpoint(tmp_path, 1, state)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    class Full:
        def __init__(self, stream):
            self.stream, self.left = stream, room

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stream.close()

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.stream.write(data)

        def flush(self):
            self.stream.flush()

    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode="r", **o: Full(real(path, mode, **o)))
    with pytest.raises(
        ValueError, match=r"cannot write .*step-000000002.pt'.*the last good checkpoint is .*001.pt'"
    ):
        write_checkpoint(tmp_path, 2, state)
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


class Payload:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_crafted_pickle_refused(tmp_path, clip_folder):
    write_checkpoint(tmp_path, 1, {"good": True})
    torch.save({"model": Payload(tmp_path / "owned")}, tmp_path / "step-000000002.pt")
    (tmp_path / "step-000000003.pt").write_bytes(pickle.dumps(Payload(tmp_path / "owned"), protocol=2))
    with pytest.warns(UserWarning, match="cannot be read and is passed over") as warned:
        file, state = newest_checkpoint(tmp_path)
    assert file.name == "step-000000001.pt" and state == {"good": True} and len(warned) == 2
    crafted = tmp_path / "clip"
    crafted.mkdir()
    for source in Path(clip_folder).iterdir():
        if source.suffix != ".safetensors":
            (crafted / source.name).write_bytes(source.read_bytes())
    torch.save({"logit_scale": Payload(tmp_path / "owned")}, crafted / "pytorch_model.bin")
    with pytest.raises(Exception, match="(?i)weights.only|cannot load"):
        DualEncoder.clip(str(crafted))
    assert not (tmp_path / "owned").exists()
