"""Runs have the numbers that they had when training was a subclass of `transformers.Trainer`."""

import json

import frozen_runs
import pytest
from twin import CASES

FROZEN = json.loads(frozen_runs.FILE.read_text())


def assert_numbers(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("case", CASES)
def test_a_run_has_its_frozen_numbers(tmp_path, case):
    assert_numbers(frozen_runs.run(case, tmp_path), FROZEN[case])


def test_a_dual_encoder_of_transformers_has_its_frozen_numbers(tmp_path):
    found = frozen_runs.run_hub(tmp_path)
    assert_numbers(found, FROZEN["a dual encoder of transformers"])


def test_a_run_on_two_processes_has_its_frozen_numbers(tmp_path):
    for found, expected in zip(frozen_runs.run_two(tmp_path), FROZEN["two processes"], strict=True):
        assert_numbers(found, expected)
