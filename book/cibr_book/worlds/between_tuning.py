"""Tuning of hyper-parameters: random trials, rounds of trials around the best one, and single
trials beyond a boundary for as long as the best is on it.

A chosen value is on the boundary if it is the smallest or largest that was tried, unless its range
ends there for a reason, as weight decay does at 0.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Settings = Mapping[str, float | int]
Place = tuple[int, ...]  # of a trial: the index of each value in its range


@dataclass(frozen=True)
class Range:
    """The values of a hyper-parameter.

    Args:
        values: in ascending order.
        start: the smallest and the largest value of random trials.
        reach: the largest value of trials around the best; larger ones are tried alone, beyond a
            boundary. None for all values.
        low: whether the range ends at its lowest value for a reason.
        high: whether it ends at its highest value for a reason.
        off: the value without effect, of a hyper-parameter that other methods lack.
    """

    values: tuple[float | int, ...]
    start: tuple[float | int, float | int]
    reach: float | int | None = None
    low: bool = False
    high: bool = False
    off: float | int | None = None

    @property
    def first_places(self) -> range:
        """The places of the values of random trials."""
        lowest, highest = (self.values.index(value) for value in self.start)
        return range(lowest, highest + 1)

    @property
    def top(self) -> int:
        """The highest place of trials around the best."""
        return len(self.values) - 1 if self.reach is None else self.values.index(self.reach)


@dataclass
class Tuning:
    """Trials of a method and their scores, the higher the better.

    Args:
        ranges: of the hyper-parameters, by name.
        evaluate: takes a list of settings and returns their scores.
        generator: of the random choices.
        scores: of all trials, by place.
    """

    ranges: Mapping[str, Range]
    evaluate: Callable[[list[Settings]], list[float]]
    generator: random.Random = field(default_factory=lambda: random.Random(0))
    scores: dict[Place, float] = field(default_factory=dict)

    @property
    def best(self) -> Settings:
        """The settings with the highest score."""
        return self._settings(self._best_place)

    @property
    def at_boundary(self) -> list[str]:
        """Names of the hyper-parameters whose best value is on the boundary."""
        names = []
        for j, (name, values) in enumerate(self.ranges.items()):
            tried = [place[j] for place in self.scores]
            chosen = self._best_place[j]
            last = len(values.values) - 1
            ends_here = (chosen == 0 and values.low) or (chosen == last and values.high)
            if chosen in (min(tried), max(tried)) and not ends_here:
                names.append(name)
        return names

    @property
    def best_score(self) -> float:
        """The highest score."""
        return self.scores[self._best_place]

    def try_at_random(self, n: int, fixed: Settings | None = None) -> None:
        """Tries n settings with values from `start` of each range, but for those that are fixed."""
        choices = [each.first_places for each in self.ranges.values()]
        for j, (name, each) in enumerate(self.ranges.items()):
            if fixed and name in fixed:
                choices[j] = [each.values.index(fixed[name])]
        self._try(_drawn(lambda: tuple(self.generator.choice(each) for each in choices)), n)

    def try_around(self, n: int) -> None:
        """Tries the neighbours of the best settings, one hyper-parameter a step up or down, and
        then settings that differ from it by at most a step in each; n in all.
        """
        centre = self._best_place
        neighbours = []
        for j in range(len(centre)):
            for step in (-1, 1):
                moved = self._moved(centre, j, step)
                if moved == self._inside(moved):
                    neighbours.append(moved)

        def places() -> Iterator[Place]:
            yield from neighbours
            yield from _drawn(lambda: self._near(centre, self.generator))

        self._try(places(), n)

    def leave_boundary(self) -> None:
        """While a hyper-parameter's best value is on the boundary, tries the next one beyond."""
        while beyond := self._beyond_boundary():
            self._try(iter(beyond), len(beyond))

    def _beyond_boundary(self) -> list[Place]:
        centre, names = self._best_place, list(self.ranges)
        beyond = []
        for j in map(names.index, self.at_boundary):
            outward = -1 if centre[j] == min(place[j] for place in self.scores) else 1
            if 0 <= centre[j] + outward < len(self.ranges[names[j]].values):
                beyond.append(self._moved(centre, j, outward))
        return beyond

    def with_further(self, ranges: Mapping[str, Range], n: int) -> "Tuning":
        """These trials for a method with further hyper-parameters, and n trials of it: the best
        settings moved by at most a step in each, with random values of the further ones.

        Args:
            ranges: of the further ones, which have an `off`; with none the method is the same.
            n: number of trials.
        """
        off = tuple(each.values.index(each.off) for each in ranges.values())
        scores = {place + off: score for place, score in self.scores.items()}
        other = Tuning({**self.ranges, **ranges}, self.evaluate, random.Random(0), scores)
        choices = [each.first_places for each in ranges.values()]

        def draw() -> Place:
            further = tuple(other.generator.choice(each) for each in choices)
            return self._near(self._best_place, other.generator) + further

        other._try(_drawn(draw), n)
        return other

    @property
    def _best_place(self) -> Place:
        return max(self.scores, key=self.scores.__getitem__)

    def _settings(self, place: Place) -> Settings:
        named = zip(self.ranges.items(), place, strict=True)
        return {name: each.values[i] for (name, each), i in named}

    def _near(self, centre: Place, generator: random.Random) -> Place:
        return self._inside([i + generator.choice((-1, 0, 1)) for i in centre])

    @staticmethod
    def _moved(place: Place, j: int, step: int) -> Place:
        return (*place[:j], place[j] + step, *place[j + 1 :])

    def _inside(self, place: Sequence[int]) -> Place:
        tops = [each.top for each in self.ranges.values()]
        return tuple(min(max(i, 0), top) for i, top in zip(place, tops, strict=True))

    def _try(self, places: Iterator[Place], n: int) -> None:
        """Tries the first n of the places that are new, fewer if 100 n places have no more."""
        new: dict[Place, None] = {}
        for _ in range(100 * n):
            place = next(places)
            if place not in self.scores:
                new[place] = None
            if len(new) == n:
                break
        scores = self.evaluate([self._settings(place) for place in new])
        self.scores |= dict(zip(new, scores, strict=True))


def _drawn(draw: Callable[[], Place]) -> Iterator[Place]:
    while True:
        yield draw()
