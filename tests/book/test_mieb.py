"""The code of the how-to on MIEB runs as it stands, offline, on mteb's own interface."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HOWTO = Path(__file__).resolve().parents[2] / "book" / "howto" / "mieb.md"


@pytest.mark.skipif(not importlib.util.find_spec("mteb"), reason="needs mteb: pip install mteb")
def test_the_howto_runs_in_mteb_offline_and_its_recalls_are_ours(tmp_path):
    script = tmp_path / "howto.py"
    script.write_text(
        "\n".join(re.findall(r"^```python\n(.*?)^```", HOWTO.read_text(), re.MULTILINE | re.DOTALL))
    )
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "MTEB_CACHE": str(tmp_path / "mteb")}
    done = subprocess.run(
        [sys.executable, script], env=os.environ | alone, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    recalls = [
        float(value) for value in re.findall(r"^recall@\d+ (\S+)$", done.stdout, re.MULTILINE)
    ]
    assert len(recalls) == 3 and 0.2 < recalls[0] <= recalls[1] <= recalls[2]  # chance is 1 / 90
