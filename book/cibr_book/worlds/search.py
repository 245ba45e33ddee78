"""One random search over hyper-parameters: trials anywhere on a grid, then trials near the best."""

from collections.abc import Callable, Mapping, Sequence

from sklearn.model_selection import ParameterGrid, ParameterSampler

Grid = Mapping[str, Sequence[float | int]]  # the values of each hyper-parameter, ascending
Trial = dict[str, float | int]


def search(
    grid: Grid,
    evaluate: Callable[[list[Trial]], Sequence[float]],
    further: Grid | None = None,
    n_random: int = 60,
    n_near: int = 60,
) -> list[tuple[float, Trial]]:
    """Trials of a method with their scores, the best one first.

    The first half is drawn from the whole grid; the second has values at most a step from the best
    of the first, and random values of the further hyper-parameters, which the first half lacks. So
    a method that extends another shares its first trials, and has as many in all.

    Args:
        grid: of the hyper-parameters.
        evaluate: takes trials and returns their scores, the higher the better.
        further: of what only this method has, without effect where it is absent.
        n_random: number of trials of the first half, fewer if the grid is smaller.
        n_near: of the second.
    """
    first = _drawn(grid, n_random)
    scored = list(zip(evaluate(first), first, strict=True))
    best = max(scored, key=lambda trial: trial[0])[1]
    near = {name: _neighbours(values, best[name]) for name, values in grid.items()}
    second = [trial for trial in _drawn(near | dict(further or {}), n_near) if trial not in first]
    scored += zip(evaluate(second), second, strict=True)
    return sorted(scored, key=lambda trial: -trial[0])


def _drawn(grid: Grid, n: int) -> list[Trial]:
    return list(ParameterSampler(grid, min(n, len(ParameterGrid(grid))), random_state=0))


def _neighbours(values: Sequence[float | int], value: float | int) -> Sequence[float | int]:
    place = values.index(value)
    return values[max(place - 1, 0) : place + 2]
