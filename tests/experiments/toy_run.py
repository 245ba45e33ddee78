"""What the runs of the toy sweep do; papermill's kernel imports it by name."""

import os
import time
from pathlib import Path


def square(settings, folder):
    """Squares i; fails where i is negative, and hangs where `hang` is set, but only once."""
    with open(settings["log"], "a") as log:  # one short line, written whole
        log.write(f"{settings['i']}\n")
    if settings["i"] < 0:
        raise ArithmeticError(f"{settings['i']} is negative")
    if settings["hang"] and not Path(folder, "hung").exists():
        Path(folder).mkdir(parents=True)
        Path(folder, "hung").touch()
        time.sleep(600)
    gpu = float(os.environ.get("CUDA_VISIBLE_DEVICES") or "nan")
    return {"square": settings["i"] ** 2, "undefined": float("nan"), "gpu": gpu}
