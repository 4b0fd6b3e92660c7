"""Streamers compared with those of transformers."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import torch
import transformers

import puna
from puna.errors import PunaError

GOLDEN = Path(__file__).parents[2] / "golden" / "checkpoint" / "hf"
TEXTS = [
    "The llama is a pack animal.\nIt carries 25 kg. \n\n  def walk(steps):\n",
    "日本語のテキスト。Привет, мир! 🦙 llama 🏔",
    "one",
    "ends with a space ",
]


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Any, Any]:
    return puna.AutoTokenizer.from_pretrained(GOLDEN), transformers.AutoTokenizer.from_pretrained(GOLDEN)


def recorder(base: Any, tokenizer: Any, **arguments: Any) -> Any:
    """Returns a streamer that records the texts it would print."""

    class Recorder(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(tokenizer, **arguments)
            self.texts: list[tuple[str, bool]] = []

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.texts.append((text, stream_end))

    return Recorder()


def feed(streamer: Any, ids: list[int], prompt: int) -> None:
    """Sends a prompt of some tokens, then the other tokens one by one."""
    streamer.put(torch.tensor([ids[:prompt]]))
    for index in ids[prompt:]:
        streamer.put(torch.tensor([index]))
    streamer.end()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("special", [True, False])
def test_texts_equal_those_of_transformers(tokenizers: tuple[Any, Any], text: str, skip: bool, special: bool) -> None:
    ours, reference = (
        recorder(module.TextStreamer, tokenizers[1], skip_prompt=skip, skip_special_tokens=special)
        for module in (puna, transformers)
    )
    ids = tokenizers[1](text)["input_ids"]
    for prompt in (1, 2):  # the second use starts from the beginning
        for streamer in (ours, reference):
            feed(streamer, ids, prompt)
    assert ours.texts == reference.texts
    assert ours.texts[-1][1] and not ours.texts[0][1]


def test_a_tokenizer_of_puna_streams_the_decoded_text(tokenizers: tuple[Any, Any]) -> None:
    for text in TEXTS[1:]:  # after a line break, spaces are lost, as in transformers
        ids = tokenizers[0](text)["input_ids"]
        streamer = recorder(puna.TextStreamer, tokenizers[0], skip_special_tokens=True)
        feed(streamer, ids, 1)
        assert "".join(text for text, _ in streamer.texts) == tokenizers[0].decode(ids, skip_special_tokens=True)


def test_the_text_is_printed(tokenizers: tuple[Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    feed(puna.TextStreamer(tokenizers[0], skip_special_tokens=True), tokenizers[0]("one two")["input_ids"], 1)
    assert capsys.readouterr().out == "one two\n"


def test_only_one_row_is_streamed(tokenizers: tuple[Any, Any]) -> None:
    with pytest.raises(PunaError, match="TextStreamer received 2 rows"):
        puna.TextStreamer(tokenizers[0]).put(torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("name", ["put", "end"])
def test_an_abstract_streamer_is_an_error(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"BaseStreamer does not define {name}"):
        getattr(puna.BaseStreamer(), name)(*([3] if name == "put" else []))


def test_another_thread_iterates_over_the_text(tokenizers: tuple[Any, Any]) -> None:
    streamer = puna.TextIteratorStreamer(tokenizers[0], skip_special_tokens=True, timeout=60.0)
    ids = tokenizers[0](TEXTS[1])["input_ids"]
    thread = threading.Thread(target=feed, args=(streamer, ids, 1))
    thread.start()
    texts = list(streamer)
    thread.join()
    assert len(texts) > 3 and "".join(texts) == tokenizers[0].decode(ids, skip_special_tokens=True)


def test_an_iterator_without_text_times_out(tokenizers: tuple[Any, Any]) -> None:
    with pytest.raises(Empty):
        next(puna.TextIteratorStreamer(tokenizers[0], timeout=0.01))


def test_a_coroutine_iterates_over_the_text(tokenizers: tuple[Any, Any]) -> None:
    ids = tokenizers[0](TEXTS[1])["input_ids"]

    async def collect() -> list[str]:
        streamer = puna.AsyncTextIteratorStreamer(tokenizers[0], skip_special_tokens=True, timeout=60.0)
        thread = threading.Thread(target=feed, args=(streamer, ids, 1))
        thread.start()
        texts = [text async for text in streamer]
        thread.join()
        return texts

    assert "".join(asyncio.run(collect())) == tokenizers[0].decode(ids, skip_special_tokens=True)


def test_a_coroutine_without_text_times_out(tokenizers: tuple[Any, Any]) -> None:
    async def wait() -> None:
        async for _ in puna.AsyncTextIteratorStreamer(tokenizers[0], timeout=0.01):
            pass

    with pytest.raises(TimeoutError, match=r"within 0.01 seconds"):
        asyncio.run(wait())
