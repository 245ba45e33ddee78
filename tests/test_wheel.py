"""The built wheel works away from the checkout: checkpoints come with it, photos do not."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
USE = """
import cibr
from cibr.evaluate import Task, evaluate

assert "site" in cibr.__file__ and cibr.__version__
pairs = cibr.load_pairs("glyphs", "test").subset(range(4))
model = cibr.DualEncoder.from_pretrained("cibr-tiny")
assert model.embed_images(list(pairs.images())).shape == (4, 128)
tasks = [Task("glyphs", "test_characters")]
assert len(evaluate(model, tasks, name="m").rows)
try:
    raise SystemExit(f"{len(cibr.load_pairs('photos', 'test'))} photos are in the wheel")
except FileNotFoundError as error:
    assert "clone it" in str(error)
"""


def test_a_wheel_holds_the_library_alone_and_all_that_it_reads(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("cibr-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert [p.name for p in site.iterdir() if not p.name.endswith(".dist-info")] == ["cibr"]
    assert (site / "cibr" / "py.typed").exists()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CIBR_")}
    environment = kept | {"PYTHONPATH": str(site), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, env=environment, check=True)
