"""The code of the how-to on MIEB runs as it stands, offline, on mteb's own interface."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HOWTO = Path(__file__).resolve().parents[3] / "book" / "howto" / "mieb.md"
pytestmark = pytest.mark.skipif(not find_spec("mteb"), reason="needs mteb: pip install mteb")


def test_the_howto_runs_in_mteb_offline_and_its_recalls_are_ours(tmp_path):
    page = HOWTO.read_text()
    code = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    folders = {"HF_HOME": str(tmp_path), "MTEB_CACHE": str(tmp_path / "mteb")}
    environment = os.environ | folders | {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", "\n".join(code)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = re.search(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
    scores = [[float(x) for x in re.findall(r" (\S+)$", t, re.M)] for t in (printed, done.stdout)]
    assert len(scores[0]) == 3 and scores[1] == pytest.approx(scores[0], abs=0.012)  # one query
