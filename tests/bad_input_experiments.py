"""What a person can get wrong about a sweep, and what they are told."""

from cibr_book.plan import read_plan


def _read(text):
    def read(tmp_path):
        (tmp_path / "sweep.yaml").write_text(text)
        read_plan(tmp_path / "sweep.yaml")

    return read


RUN = "results: rows.csv\nconditions: {all: {methods: [{method: CLIP, seed: [1, 1]}]}}"

CASES = [
    ("an entry misspelt", _read("result: rows.csv"), ValueError, "unknown entry 'result', did you mean 'results'"),
    ("no results", _read("conditions: {}"), ValueError, "'results' is missing"),
    ("a run twice", _read(RUN), ValueError, "two runs have the settings .*give each run once"),
    ("a number as text", _read(RUN.replace("[1, 1]", "1e-3")), ValueError, "seed: YAML reads '1e-3' as text"),
    ("no such file", lambda: read_plan("no.yaml"), FileNotFoundError, "no.yaml"),
]
