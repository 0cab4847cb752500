"""What is made once is made once, whoever asks, and does not grow without bounds."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from fftconv_cupy.remembered import Made, Remembered


def test_values_are_made_when_asked_for_and_once():
    asked: list[int] = []
    made: Made[int, str] = Made(lambda key: asked.append(key) or str(key))
    assert [made[key] for key in (3, 4, 3)] == ["3", "4", "3"]
    assert asked == [3, 4]
    assert made.get(5) is None


def test_all_threads_get_the_value_that_was_kept_first():
    together = threading.Barrier(4)

    def make(key: int) -> object:
        together.wait(timeout=60)  # all four have found nothing, and make one each
        return object()

    made = Made(make)
    with ThreadPoolExecutor(4) as pool:
        values = list(pool.map(lambda _: made[0], range(4)))
    assert len(set(map(id, values))) == 1
    assert made[0] is values[0]


def test_the_limit_holds_and_none_means_for_ever():
    few: Remembered[int, int] = Remembered(limit=3)
    all_of_them: Made[int, int] = Made(lambda key: key, limit=None)
    for key in range(10_000):
        assert few.keep(key, key) == all_of_them[key] == key
        assert len(few) <= 3
    assert len(all_of_them) == 10_000
