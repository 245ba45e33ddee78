"""The random search: half of the trials anywhere, half near the best."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cibr_book.worlds.search import search

GRID = {"a": tuple(range(9)), "b": tuple(range(9))}


@settings(max_examples=20, deadline=None)
@given(top=st.tuples(st.integers(0, 8), st.integers(0, 8)))
def test_the_best_trial_comes_first_and_the_second_half_is_near_the_best_of_the_first(top):
    asked = []

    def evaluate(trials):
        asked.append(trials)
        return [-1.0 * abs(t["a"] - top[0]) - abs(t["b"] - top[1]) for t in trials]

    found = search(GRID, evaluate, n_random=20, n_near=9)
    first, second = asked
    assert len(first) == 20 and len({(t["a"], t["b"]) for t in first + second}) == len(found)
    best = max(first, key=lambda t: evaluate([t])[0])
    assert all(abs(t[name] - best[name]) <= 1 for t in second for name in GRID)
    scores = [score for score, _ in found]
    assert scores == sorted(scores, reverse=True) and scores[0] == max(evaluate(first + second))


def test_a_method_that_extends_another_shares_its_first_trials():
    def evaluate(trials):
        return [-1.0 * t["a"] - t.get("c", 3) for t in trials]

    plain = search(GRID, evaluate, n_random=10, n_near=10)
    extended = search(GRID, evaluate, {"c": (0, 1, 2)}, n_random=10, n_near=18)
    without = [trial for _, trial in extended if "c" not in trial]
    assert len(without) == 10 and all(trial in [t for _, t in plain] for trial in without)
    assert extended[0][1]["c"] == 0


def test_a_grid_that_is_smaller_than_the_search_is_tried_whole():
    assert len(search({"a": (0, 1, 2)}, lambda trials: [0.0] * len(trials))) == 3
