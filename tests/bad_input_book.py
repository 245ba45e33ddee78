"""Bad input to the study's sweeps, runs and data."""

from helpers import noise_pairs

from cibr_book.experiments.corruptions import Corruption, in_both_styles
from cibr_book.experiments.plan import read_plan
from cibr_book.experiments.run import library_settings


def sweep(text):
    def read(tmp_path):
        (tmp_path / "sweep.yaml").write_text(text)
        read_plan(tmp_path / "sweep.yaml")

    return read


RUN = "results: rows.csv\nconditions: {all: {methods: [{method: CLIP, seed: [1, 1]}]}}"
CALLS = {
    "sweep's entry": (sweep("result: rows.csv"), ".*sweep.yaml: 'result', did you mean 'results'"),
    "sweep's condition": (
        sweep(RUN.replace("methods", "method")),
        "entry of 'all' in .*: 'method'",
    ),
    "sweep's draw": (sweep(RUN.replace("seed:", "draw: 3, seed:")), "the grid has 1 points"),
    "sweep without results": (sweep("conditions: {}"), "needs the entries"),
    "sweep's run twice": (sweep(RUN), "two runs have the settings .*: drop one"),
    "sweep's text": (sweep(RUN.replace("[1, 1]", "1e-3")), "seed: YAML reads '1e-3' as text"),
    "setting": (lambda: library_settings({"beat": 0.1}), "setting .*beat.*did you mean 'beta'"),
    "near style": (lambda: in_both_styles(noise_pairs(2), "tin"), "tint"),
    "fraction": (lambda: Corruption(fraction=0), "shares, at most 1"),
    "shuffled": (lambda: Corruption(shuffled_captions=2), "shares, at most 1"),
}
CASES = [(name, call, ValueError, message) for name, (call, message) in CALLS.items()]
CASES += [("no such sweep", lambda: read_plan("no.yaml"), FileNotFoundError, "no.yaml")]
