"""What the runs of the toy sweep do; papermill's kernel imports it by name."""

import time
from pathlib import Path


def square(settings, folder):
    """Squares i, fails where i is negative, and hangs the first time where `hang` is set."""
    with open(settings["log"], "a") as log:  # one short line: whole, whoever else writes
        log.write(f"{settings['i']}\n")
    if settings["i"] < 0:
        raise ArithmeticError(f"{settings['i']} is negative")
    if settings["hang"] and Path(settings["log"]).read_text().split().count(str(settings["i"])) == 1:
        time.sleep(600)
    return {"square": settings["i"] ** 2, "undefined": float("nan")}
