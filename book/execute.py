"""Execute notebooks of the book in place, so that a second run leaves the same bytes.

    python book/execute.py            every notebook in book/ and book/howto/
    python book/execute.py train      book/train.ipynb only

Each notebook runs in its own folder, as under nbval, and replaces the stored one only when every
cell has run: a failed run leaves the notebook as it was. Timings, widget states and the kernel's
description, which differ between runs or machines, are removed. Figures are stored with a palette,
in a quarter of the bytes.
"""

import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from cibr.utils import write_atomically

BOOK = Path(__file__).resolve().parent
PATHS = sorted([*BOOK.glob("*.ipynb"), *BOOK.glob("howto/*.ipynb")])
NOTEBOOKS = {path.stem: path for path in PATHS}
# Figures that pages outside their notebook show: the figure's name and its file.
FIGURES = {
    "fig-search": BOOK / "images" / "search.png",
    "fig-study": BOOK / "images" / "study.png",
    "fig-water": BOOK / "images" / "threshold.png",
}
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
# What kernels inherit here and under nbval: no progress bars, no network, and one thread, so that
# sums come out the same on any number of cores and two workers share a machine well. A single worker
# of nbval gives torch all cores, whose idle threads wait for the next product of a small model, but
# not numpy, whose threads only get in each other's way. As in the Makefile, glibc keeps freed memory.
ENVIRONMENT = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ENVIRONMENT |= dict.fromkeys(
    ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), "1073741824"
)
ALL_CORES = {"OMP_NUM_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": "10000"}
WIDGET = "application/vnd.jupyter.widget-view+json"

RUNS = tempfile.TemporaryDirectory(prefix="cibr-runs-")


def prepare_environment(is_alone: bool = False) -> None:
    """Set ENVIRONMENT, hide local data and models, and send runs to a new folder.

    Args:
        is_alone: whether one notebook at a time runs, which may take all cores.
    """
    os.environ.update(ENVIRONMENT | (ALL_CORES if is_alone else {}))
    os.environ["CIBR_RUNS"] = RUNS.name
    os.environ.pop("CIBR_DATA", None)
    os.environ.pop("CIBR_MODELS", None)


def _with_palette(png: str) -> str:
    """An opaque PNG image in base64 with at most 256 colours, where that makes it smaller."""
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")
    stream = io.BytesIO()
    if image.getchannel("A").getextrema() != (255, 255):
        return png
    image.convert("RGB").quantize().save(stream, "PNG", optimize=True)
    return min(png, base64.b64encode(stream.getvalue()).decode(), key=len)


def execute(path: Path) -> None:
    """Execute one notebook and replace it by the result.

    Raises:
        CellExecutionError: a cell failed; the stored notebook is unchanged.
    """
    notebook = nbformat.read(path, as_version=4)
    options = dict(timeout=None, record_timing=False, coalesce_streams=True)
    options["resources"] = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, **options).execute()
    notebook.metadata = nbformat.from_dict(KERNEL)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        pngs = []
        if cell.cell_type == "code":  # progress bars, where ipywidgets is installed
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                output.data["image/png"] = _with_palette(png)
                pngs.append(output.data["image/png"])
        name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        if name in FIGURES and path.parent == BOOK:
            (png,) = pngs
            FIGURES[name].write_bytes(base64.b64decode(png))
    write_atomically(path, lambda part: nbformat.write(notebook, part))


if __name__ == "__main__":
    prepare_environment()
    names = [Path(name).stem for name in sys.argv[1:]] or list(NOTEBOOKS)
    if missing := set(names) - set(NOTEBOOKS):
        sys.exit(f"no such notebook: {missing}; there are {', '.join(NOTEBOOKS)}")
    for name in names:
        start = time.monotonic()
        # In a folder of its own, where no run of another notebook lies finished.
        os.environ["CIBR_RUNS"] = str(Path(RUNS.name, name))
        execute(NOTEBOOKS[name])
        print(f"{name} executed in {time.monotonic() - start:.0f} s", flush=True)
