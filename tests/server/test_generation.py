"""`Running`: updates that have arrived at the same time are sent at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

pytest.importorskip("starlette")

from puna.server.generation import Running
from puna.server.updates import TextDelta


class Arrivals(Running):
    """Updates in groups that arrive at the same time; the last group ends with an error if `fails`."""

    def __init__(self, groups: list[str], fails: bool = False) -> None:
        self._stream = SimpleNamespace(has_news=False)
        self._groups, self._fails = groups, fails

    async def __aiter__(self):
        for number, group in enumerate(self._groups):
            for index, text in enumerate(group):
                is_last = index + 1 == len(group)
                self._stream.has_news = not is_last or (self._fails and number + 1 == len(self._groups))
                yield TextDelta(0, text)
        if self._fails:
            raise ValueError


@pytest.mark.parametrize("fails", [False, True])
def test_updates_that_arrived_together_are_joined(fails):
    sent = []

    async def read():
        async for part in Arrivals(["a", "bcd", "-", "-e-", "f-"], fails).encoded(
            lambda update: b"" if update.text == "-" else update.text.encode()
        ):
            sent.extend((part,))

    if fails:
        with pytest.raises(ValueError):
            asyncio.run(read())
    else:
        asyncio.run(read())
    assert sent == [b"a", b"bcd", b"e", b"f"]
