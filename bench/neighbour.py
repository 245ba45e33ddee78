"""Time of a training step next to a busy program, with OpenMP's idle threads spinning (the default)
or asleep.

GOMP_SPINCOUNT must be set before torch is loaded, so every measurement is a separate process.
Prints seconds per step of the tiny model on glyphs, the median of the rounds.
"""

import os
import statistics
import subprocess
import sys

ROUNDS = 2
STEP = """
import tempfile, warnings, cibr
warnings.simplefilter("ignore")
options = dict(dataset="glyphs", model="tiny", epochs=1)
config = cibr.configure(output_dir=tempfile.mkdtemp(), **options)
train, _, _ = cibr.load_splits(config)
last = cibr.fit(cibr.build_model(config, train), train, None, config).iloc[-1]
print(last["seconds"] / last["step"])
"""


def seconds_a_step(spin_count: str) -> float:
    """Seconds per step of a short run in a new process; an empty count is the default."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    environment |= {"TQDM_DISABLE": "1"} | ({"GOMP_SPINCOUNT": spin_count} if spin_count else {})
    run = subprocess.run(
        [sys.executable, "-c", STEP], env=environment, capture_output=True, text=True, check=True
    )
    return float(run.stdout.split()[-1])


if __name__ == "__main__":
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(ROUNDS):
        for place in ("idle", "beside one busy program"):
            busy = (
                [sys.executable, "-c", "while True: pass"]
                if place != "idle"
                else [sys.executable, "-c", ""]
            )
            neighbour = subprocess.Popen(busy)
            for spin_count in ("", "1000"):
                found.setdefault((place, spin_count), []).append(seconds_a_step(spin_count))
            neighbour.kill()
            neighbour.wait()
    for (place, spin_count), seconds in found.items():
        setting = f"GOMP_SPINCOUNT {spin_count or 'default'}"
        print(f"{place}, {setting}: {statistics.median(seconds):.3f} s a step")
