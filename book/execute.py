"""Execute notebooks of the book in place, so that a second run leaves the same bytes.

    python book/execute.py            every notebook in book/ and book/howto/
    python book/execute.py train      book/train.ipynb only

Each notebook runs in its own folder, as under nbval, and replaces the stored one only when every cell has run: a
failed run leaves the notebook as it was. Timings, widget states and the kernel's description, which differ between
runs or machines, are removed.
"""

import argparse
import base64
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from cibr.utils import write_atomically

BOOK = Path(__file__).resolve().parent
NOTEBOOKS = {
    p.stem: p for p in sorted([*BOOK.glob("*.ipynb"), *BOOK.glob("howto/*.ipynb")])
}
# Figures that pages outside their notebook show: the figure's name and its file.
FIGURES = {"fig-train-gallery": BOOK / "images" / "gallery.png"}
KERNEL = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}
# What kernels inherit here and under nbval: no progress bars, no network, and threads that do not spin while they
# wait, since spinning makes training four times slower beside a busy neighbour.
ENVIRONMENT = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "10000"}


def prepare_environment() -> None:
    """Set ENVIRONMENT and hide local data and models, so that no cell depends on them."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop("CIBR_DATA", None)
    os.environ.pop("CIBR_MODELS", None)


def execute(path: Path) -> None:
    """Execute one notebook and replace it by the result.

    Raises:
        CellExecutionError: a cell failed; the stored notebook is unchanged.
    """
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook,
        timeout=None,
        record_timing=False,
        coalesce_streams=True,
        resources=folder,
    ).execute()
    notebook.metadata = nbformat.from_dict(KERNEL)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        figure = FIGURES.get(
            cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
        )
        if figure and path.parent == BOOK:
            (png,) = [
                o.data["image/png"]
                for o in cell.outputs
                if "image/png" in o.get("data", {})
            ]
            figure.write_bytes(base64.b64decode(png))
    write_atomically(path, lambda part: nbformat.write(notebook, part))


def main() -> int:
    """Execute the notebooks named on the command line, or all; returns 1 when a cell fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="such as train; none means all")
    names = [Path(name).stem for name in parser.parse_args().names] or list(NOTEBOOKS)
    if missing := [name for name in names if name not in NOTEBOOKS]:
        parser.error(f"no such notebook: {missing}; there are {list(NOTEBOOKS)}")
    prepare_environment()
    for name in names:
        start = time.monotonic()
        try:
            execute(NOTEBOOKS[name])
        except CellExecutionError as error:
            print(f"{name} failed and is left as it was:\n{error}", file=sys.stderr)
            return 1
        print(f"{name} executed in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
