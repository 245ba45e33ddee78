"""Execute notebooks of the book in place, so that a second run leaves the same bytes.

    python book/execute.py            every notebook in book/ and book/howto/
    python book/execute.py train      book/train.ipynb only

papermill executes each notebook in its own folder, as nbval does, into a temporary file that replaces the
original only when every cell has run: a failed run leaves the stored notebook as it was. Timings, papermill's
own metadata and widget states are removed, and what is left of the kernel's description is the same on every
machine.
"""

import argparse
import base64
import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
import papermill
import tqdm.auto  # noqa: F401  (here, before TQDM_DISABLE is set, so that papermill's own bar is shown)
from papermill.exceptions import PapermillExecutionError

BOOK = Path(__file__).resolve().parent
# (notebook, figure's name): the file that README.md and book/intro.md show
FIGURES = {("train", "fig-train-gallery"): "images/gallery.png"}
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python", "pygments_lexer": "ipython3"},
}


def prepare_environment() -> None:
    """Set what the kernels of the book inherit, when they are executed and when nbval repeats them.

    No progress bars; no local data sets and no network, so that a cell which needs either fails here and not
    at a reader's. Kernels started after this call are affected, and the calling process too.
    """
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.pop("CIBR_DATA", None)
    os.environ.pop("CIBR_MODELS", None)


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Remove from an executed notebook what differs between two runs or two machines; cell ids stay."""
    kept = {
        k: v for k, v in notebook.metadata.items() if k not in ("papermill", "widgets")
    }
    notebook.metadata = nbformat.from_dict({**kept, **NOTEBOOK_METADATA})
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
    return notebook


def export_figures(notebook: nbformat.NotebookNode, stem: str) -> None:
    """Write the figures that pages outside the notebook show; FIGURES names them."""
    for (owner, figure), file in FIGURES.items():
        for cell in notebook.cells:
            name = cell.metadata.get("mystnb", {}).get("figure", {}).get("name")
            if stem == owner and name == figure:
                pictures = [
                    o.data["image/png"]
                    for o in cell.outputs
                    if "image/png" in o.get("data", {})
                ]
                (BOOK / file).parent.mkdir(exist_ok=True)
                (BOOK / file).write_bytes(base64.b64decode(pictures[0]))


def execute(path: Path) -> None:
    """Execute one notebook in its own folder and replace it by the result; raise and leave it on an error."""
    with tempfile.TemporaryDirectory() as folder:
        executed = Path(folder, path.name)
        papermill.execute_notebook(
            path,
            executed,
            cwd=path.parent,
            kernel_name="python3",
            language="python",
            record_timing=False,
            progress_bar={"desc": path.stem, "unit": "cell"},
        )
        notebook = tidy(nbformat.read(executed, as_version=4))
    # Beside the original, since a rename is atomic only within one file system.
    replacement = path.with_suffix(".ipynb.tmp")
    nbformat.write(notebook, replacement)
    replacement.replace(path)
    export_figures(notebook, path.stem)


def main() -> int:
    """Execute the notebooks named on the command line, or all; the exit status is 1 when a cell fails."""
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    parser.add_argument(
        "names", nargs="*", help="names of notebooks, such as train; none means all"
    )
    names = parser.parse_args().names
    there = sorted([*BOOK.glob("*.ipynb"), *BOOK.glob("howto/*.ipynb")])
    known = {path.stem: path for path in there}
    if missing := [name for name in names if Path(name).stem not in known]:
        parser.error(f"not in {BOOK.name}/: {', '.join(missing)}")
    paths = [known[Path(name).stem] for name in names] or there
    prepare_environment()
    for path in paths:
        start = time.monotonic()
        try:
            execute(path)
        except PapermillExecutionError as error:
            print(
                f"{path.name} failed and is left as it was:\n{error}", file=sys.stderr
            )
            return 1
        print(f"{path.name} done in {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
