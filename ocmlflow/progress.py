"""Progress of long work: a bar on a terminal, nothing elsewhere."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

_T = TypeVar("_T")

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Takes items and their number, and gives the same items; shows progress while they are used."""


def progress_bar(items: Iterable[_T], total: int, label: str = "") -> Iterable[_T]:
    """The items, with a bar on a terminal and nothing elsewhere."""
    from tqdm import tqdm  # when work begins: --help does not wait for it

    return tqdm(items, total=total, desc=label, disable=None, leave=False)


def silent(items: Iterable[_T], total: int) -> Iterable[_T]:
    """The items; shows nothing."""
    return items
