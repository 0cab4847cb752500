"""What is made once and kept: dictionaries that stay within bounds and may be filled by many threads at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")

LIMIT = 4096  # of what is kept; beyond, it starts anew


class Remembered(dict[Key, Value], Generic[Key, Value]):
    """A dictionary whose values are kept by `keep`: the first of a key stays, and no more than `limit` do.

    A look-up is that of any dictionary, and takes no lock. Without a limit all values are kept for ever.
    """

    def __init__(self, limit: int | None = LIMIT) -> None:
        super().__init__()
        self._limit = limit
        self._lock = threading.Lock()

    def keep(self, key: Key, value: Value) -> Value:
        """Keep a value unless another thread has kept one in the meantime; return the one that is kept."""
        with self._lock:
            if self._limit is not None and len(self) >= self._limit:
                self.clear()
            return self.setdefault(key, value)


class Made(Remembered[Key, Value]):
    """Values that are made when they are first asked for, as ``made[key]``."""

    def __init__(self, make: Callable[[Key], Value], limit: int | None = LIMIT) -> None:
        super().__init__(limit)
        self._make = make

    def __missing__(self, key: Key) -> Value:
        """Make and keep the value of a key; without the lock, for it may take seconds."""
        return self.keep(key, self._make(key))
