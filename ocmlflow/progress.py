"""The type of a function that shows progress, such as a progress bar, and one that shows none."""

from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Takes items and their number, and yields the same items while it shows progress."""


def silent(items: Iterable[Any], _: int) -> Iterable[Any]:
    """A Progress that shows nothing."""
    return items
