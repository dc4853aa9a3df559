"""The pools of one role and model, kept in the order of their load. Pure.

Loads change one at a time and are asked for at every request, so the order is maintained, not made.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class LoadOrder(Generic[Item]):
    """Each item once, by load; of equals the one first whose load has changed longest ago."""

    _places: list[tuple[float, int, int]] = field(default_factory=list)  # load, turn, number
    _item_of: dict[int, Item] = field(default_factory=dict)
    _place_of: dict[int, tuple[float, int, int]] = field(default_factory=dict)
    _next_number: int = 0
    _next_turn: int = 0

    def __iter__(self) -> Iterator[Item]:
        """Least loaded first."""
        return (self._item_of[number] for _, _, number in self._places)

    def items(self) -> Collection[Item]:
        """In the order in which they came."""
        return self._item_of.values()

    def first(self, num_items: int) -> list[Item]:
        return [self._item_of[number] for _, _, number in self._places[:num_items]]

    def __len__(self) -> int:
        return len(self._places)

    def add(self, item: Item, load: float) -> int:
        """The number by which `move` and `remove` know it."""
        number, self._next_number = self._next_number, self._next_number + 1
        self._item_of[number] = item
        self._put(number, load)
        return number

    def move(self, number: int, load: float) -> None:
        place = self._place_of[number]
        if place[0] != load:
            del self._places[bisect_left(self._places, place)]
            self._put(number, load)

    def _put(self, number: int, load: float) -> None:
        turn, self._next_turn = self._next_turn, self._next_turn + 1
        place = self._place_of[number] = (load, turn, number)
        insort(self._places, place)

    def remove(self, number: int) -> None:
        del self._places[bisect_left(self._places, self._place_of.pop(number))]
        del self._item_of[number]
