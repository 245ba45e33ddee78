"""The code of the how-to on MIEB runs as it stands, offline, on mteb's own interface."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HOWTO = Path(__file__).resolve().parents[2] / "book" / "howto" / "mieb.md"
pytestmark = pytest.mark.skipif(not find_spec("mteb"), reason="needs mteb: pip install mteb")


def test_the_howto_runs_in_mteb_offline_and_its_recalls_are_ours(tmp_path):
    code = re.findall(r"^```python\n(.*?)^```", HOWTO.read_text(), re.MULTILINE | re.DOTALL)
    folders = {"HF_HOME": str(tmp_path), "MTEB_CACHE": str(tmp_path / "mteb")}
    environment = os.environ | folders | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recalls = re.findall(r"^recall@\d+ (\S+)$", done.stdout, re.MULTILINE)
    assert 0.2 < float(recalls[0]) <= float(recalls[1]) <= float(recalls[2])  # chance is 1 / 90
