"""What a row of results or a checkpoint was made by: the commit and the versions of packages."""

import platform
import subprocess
from importlib import import_module
from typing import Any

from cibr.utils import project_root

_VERSIONS_OF = ("cibr", "torch", "transformers", "accelerate", "numpy")


def provenance() -> dict[str, Any]:
    """Commit of the checkout and versions of the packages that results depend on.

    Returns:
        `commit`, 12 digits, with `+` if files other than result tables have changed, None outside a
        repository; and `versions` by package, with `python`.
    """
    versions = {name: import_module(name).__version__ for name in _VERSIONS_OF}
    return {"commit": _commit(), "versions": {"python": platform.python_version()} | versions}


def _commit() -> str | None:
    git = ["git", "-C", str(project_root())]
    quiet = dict(stderr=subprocess.DEVNULL, text=True)
    # Result tables change while they are made, and affect no result.
    code = ["--untracked-files=no", "--", ".", ":(exclude)data/results"]
    try:
        changed = subprocess.check_output([*git, "status", "--porcelain", *code], **quiet)
        commit = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], **quiet)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("+" if changed else "")
