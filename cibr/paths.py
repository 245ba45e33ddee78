"""Where the project's files lie, in a checkout and when the package is installed from a wheel."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def in_checkout() -> bool:
    """Returns whether the package lies in its own checkout, beside ``pyproject.toml``."""
    # Only the folder just above counts: a virtual environment may lie inside another project.
    return (PACKAGE.parent / "pyproject.toml").is_file()


def project_root() -> Path:
    """Returns the checkout's folder, or the current one when the package is installed."""
    return PACKAGE.parent if in_checkout() else Path.cwd()


def data_folder() -> Path:
    """Returns the folder for data that can be made or fetched again; it need not exist yet.

    Returns:
        ``data/cache`` of the checkout, which git ignores, or ``~/.cache/cibr`` when installed.
    """
    return PACKAGE.parent / "data" / "cache" if in_checkout() else Path.home() / ".cache" / "cibr"


def cards_file() -> Path:
    """Returns the file of the data sets' cards.

    Raises:
        FileNotFoundError: if it lies neither in the package nor in the checkout.
    """
    candidates = PACKAGE / "data" / "datasets.yaml", PACKAGE.parent / "data" / "datasets.yaml"
    for file in candidates:
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"the data sets' cards are missing: neither {candidates[0]} (as installed) nor "
        f"{candidates[1]} (as in the repository) is there; install the package again"
    )
