"""Progress bars: the type of a function that shows progress, and one that shows none."""

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Items and their number to the same items, with a bar or some other sign of life."""


def silent(items: Iterable[Any], _: int) -> Iterable[Any]:
    """Progress that shows nothing."""
    return items
