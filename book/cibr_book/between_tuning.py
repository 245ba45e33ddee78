"""Tuning on ladders of values: random trials, then rounds of trials around the best one.

A knob is on an edge if its chosen value is the smallest or largest that was tried, unless its
ladder ends there for a reason, such as no decay.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Settings = Mapping[str, float | int]
Place = tuple[int, ...]


@dataclass(frozen=True)
class Ladder:
    """The values of a knob.

    Args:
        values: in ascending order.
        start: the smallest and the largest value of random trials.
        low: whether the lowest value is no edge, since nothing lies below it.
        high: whether the highest value is no edge, since nothing lies above it.
        off: the value at which the knob has no effect, for one that other methods lack.
    """

    values: tuple[float | int, ...]
    start: tuple[float | int, float | int]
    low: bool = False
    high: bool = False
    off: float | int | None = None


@dataclass
class Tuning:
    """Trials of a method and their scores, the higher the better.

    Args:
        ladders: of the knobs, by name.
        evaluate: takes a list of settings and returns their scores.
        generator: of the random choices.
        scores: of all trials, by their places on the ladders.
    """

    ladders: Mapping[str, Ladder]
    evaluate: Callable[[list[Settings]], list[float]]
    generator: random.Random = field(default_factory=lambda: random.Random(0))
    scores: dict[Place, float] = field(default_factory=dict)

    @property
    def best(self) -> Settings:
        """The settings with the highest score."""
        return self._at(self._best_place)

    @property
    def edges(self) -> list[str]:
        """Names of the knobs whose best value is the smallest or largest tried, and no natural end
        of the ladder.
        """
        names = []
        for j, (name, ladder) in enumerate(self.ladders.items()):
            tried = [place[j] for place in self.scores]
            at = self._best_place[j]
            is_end = (at == 0 and ladder.low) or (at == len(ladder.values) - 1 and ladder.high)
            if at in (min(tried), max(tried)) and not is_end:
                names.append(name)
        return names

    def try_at_random(self, n: int) -> None:
        """Tries n settings within the ranges at which the ladders start."""
        ranges = [self._start(ladder) for ladder in self.ladders.values()]
        self._try(self._drawn(lambda: [self.generator.choice(each) for each in ranges]), n)

    def try_around(self, n: int) -> None:
        """Tries the neighbours of the best settings, one knob a step up or down, and then settings
        that differ from it by at most a step in every knob; n in all.
        """
        centre = self._best_place
        neighbours = []
        for j in range(len(centre)):
            for step in (-1, 1):
                moved = (*centre[:j], centre[j] + step, *centre[j + 1 :])
                if moved == self._inside(moved):
                    neighbours.append(moved)

        def places() -> Iterator[Place]:
            yield from neighbours
            yield from self._drawn(lambda: [i + self.generator.choice((-1, 0, 1)) for i in centre])

        self._try(places(), n)

    def with_knobs(self, ladders: Mapping[str, Ladder], n: int) -> "Tuning":
        """These trials for a method that has further knobs, and n trials of it: the best settings
        moved by at most a step in every knob, with random values of the further ones.

        Args:
            ladders: of the further knobs, which have an `off`; with none the method is the same.
            n: number of trials.
        """
        off = tuple(ladder.values.index(ladder.off) for ladder in ladders.values())
        scores = {place + off: score for place, score in self.scores.items()}
        both = {**self.ladders, **ladders}
        other = Tuning(both, self.evaluate, random.Random(0), scores)
        ranges = [self._start(ladder) for ladder in ladders.values()]
        centre = self._best_place

        def moved() -> list[int]:
            near = [i + other.generator.choice((-1, 0, 1)) for i in centre]
            return near + [other.generator.choice(each) for each in ranges]

        other._try(other._drawn(moved), n)
        return other

    @property
    def _best_place(self) -> Place:
        return max(self.scores, key=self.scores.__getitem__)

    def _at(self, place: Place) -> Settings:
        named = zip(self.ladders.items(), place, strict=True)
        return {name: ladder.values[i] for (name, ladder), i in named}

    @staticmethod
    def _start(ladder: Ladder) -> range:
        low, high = (ladder.values.index(value) for value in ladder.start)
        return range(low, high + 1)

    def _inside(self, place: Sequence[int]) -> Place:
        tops = [len(ladder.values) - 1 for ladder in self.ladders.values()]
        return tuple(min(max(i, 0), top) for i, top in zip(place, tops, strict=True))

    def _drawn(self, draw: Callable[[], list[int]]) -> Iterator[Place]:
        while True:
            yield self._inside(draw())

    def _try(self, places: Iterator[Place], n: int) -> None:
        """Tries the first n of the places that are new, fewer if 100 n places have no more."""
        new: dict[Place, None] = {}
        for _ in range(100 * n):
            place = next(places)
            if place not in self.scores:
                new[place] = None
            if len(new) == n:
                break
        scores = self.evaluate([self._at(place) for place in new])
        self.scores |= dict(zip(new, scores, strict=True))
