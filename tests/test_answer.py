"""An answer never contains the text of its prompt, and stop strings may contain special tokens."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders

from puna import LLM
from puna.answer import Answer
from puna.engine import Event, Request
from puna.errors import RequestError
from puna.tokenizer import LlamaTokenizer, LlamaTokenizerFast
from tests.helpers.properties import settings
from tests.helpers.scripted_model import SPECIAL, TOKENS, byte_tokenizer, write_scripted_model
from tests.helpers.vocabularies import answer_after, train_sentencepiece

START, END, TURN, TOOL = range(4)


def ids_of(text: str) -> list[int]:
    return byte_tokenizer().encode(text).ids


def script(text: str) -> dict[int, int]:
    """Maps each token of a text to the next, so that a model answers the first token with the rest of the text."""
    return dict(itertools.pairwise(ids_of(text)))


FAST = LlamaTokenizerFast(
    tokenizer_object=byte_tokenizer(), literal=True, unk_token=None, bos_token=SPECIAL[0], eos_token=SPECIAL[1]
)


def decode_answer(tokenizer, ids: list[int], stops: tuple[str, ...], end: int | None = None) -> tuple[str, str, int]:
    """Returns the text, the finish reason and the number of tokens of an answer with these ids and this end token."""
    answer = Answer(Request((0,), 99), tokenizer, stops, continues_prompt=False)
    pieces = []
    for index in ids:
        answer.feed(Event(1, index), 0, 1)
        pieces += answer.take()
    answer.feed(Event(1, finish_reason="length" if end is None else "stop", stop_id=end), 0, 1)
    pieces += answer.take()
    completion = answer.completion()
    assert completion.text == "".join(pieces)
    check_deltas(tokenizer, ids, stops, end, completion)
    return completion.text, completion.finish_reason, len(completion.ids)


def check_deltas(tokenizer, ids, stops, end, completion):
    """Checks the deltas of an answer: their tokens have exactly the text that the deltas have so far."""

    def decode(tokens):
        return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    answer = Answer(Request((0,), 99), tokenizer, stops, continues_prompt=False)
    answer.use_deltas(progress=False)
    events = [Event(1, index) for index in ids]
    events.append(Event(1, finish_reason="length" if end is None else "stop", stop_id=end))
    text, tokens, reasons = "", [], []
    for event in events:
        if answer.finished:
            break
        answer.feed(event, 0, 1)
        for delta in answer.take():
            text += delta.text
            tokens += delta.ids
            reasons.append(delta.finish_reason)
            assert not any(part in text for part in stops) or answer.finished
            whole = decode(tokens)
            if delta.finish_reason is None and "\ufffd" not in whole:
                assert text.startswith(whole)
            assert "\ufffd" not in text or "\ufffd" in decode(ids)
    assert reasons == [None] * (len(reasons) - 1) + [completion.finish_reason]
    assert text == completion.text
    assert tokens == ids[: len(tokens)]
    assert completion.stop == answer.stop
    if completion.stop is None or completion.stop == end:
        assert tokens == ids
    else:  # the shortest list of tokens with this text, and perhaps special tokens in front of the stop string
        assert completion.stop in stops
        assert decode(tokens).startswith(text)
        while tokens and not decode(tokens[-1:]):
            tokens.pop()
        assert not tokens or not decode(tokens[:-1]).startswith(text)


def expected_answer(ids: list[int], stops: tuple[str, ...]) -> tuple[str, str, int]:
    """Returns the expected result of `decode_answer`, found by a slow search after each token.

    The stop strings are searched in the text, and in the list of its characters and special tokens.
    """
    for count in range(1, len(ids) + 1):
        shown: list[object] = []  # characters and ids of special tokens
        for special, run in itertools.groupby(ids[:count], key=lambda index: index < len(SPECIAL)):
            run = list(run)
            shown += run if special else list(FAST.decode(run))
        text = "".join(item for item in shown if isinstance(item, str))
        starts = [text.index(stop) for stop in stops if stop in text]
        for stop in stops:
            stop_items = [index if index < len(SPECIAL) else FAST.decode([index]) for index in ids_of(stop)]
            if not any(isinstance(item, int) for item in stop_items):
                continue
            matches = [at for at in range(len(shown)) if shown[at : at + len(stop_items)] == stop_items]
            starts += [sum(isinstance(item, str) for item in shown[:at]) for at in matches]
        if starts:
            return text[: min(starts)], "stop", count
    return FAST.decode(ids, skip_special_tokens=True), "length", len(ids)


SYMBOLS = st.sampled_from([*"ab", "\n", *SPECIAL[1:]])


@settings(max_examples=300)
@given(text=st.lists(SYMBOLS, max_size=12), stops=st.lists(st.lists(SYMBOLS, min_size=1, max_size=4), max_size=3))
@example(text=["a", "<|turn|>", "b"], stops=[["a", "b"]])
@example(text=["a", "<|turn|>", "<|tool|>", "b"], stops=[["a", "<|turn|>", "b"]])
@example(text=["<|turn|>", "<|turn|>", "a"], stops=[["<|turn|>", "a"]])
@example(text=["a", "<|turn|>", "<|end|>", "<|end|>"], stops=[["a", "<|end|>"]])
@example(text=["a", "<|turn|>", "b", "<|end|>", "<|end|>", "<|end|>"], stops=[["a", "b", "<|end|>"]])
@example(text=["a", "<|turn|>", "b", "a"], stops=[["a", "<|turn|>", "a"], ["b", "a"]])
def test_stop_strings_match_text_and_special_tokens(text, stops):
    ids, strings = ids_of("".join(text)), tuple("".join(stop) for stop in stops)
    assert decode_answer(FAST, ids, strings) == expected_answer(ids, strings)


def test_a_stop_string_may_contain_the_end_token():
    ids = ids_of("some text\n\n")
    assert decode_answer(FAST, ids, ("\n\n<|end|>",), END) == ("some text", "stop", len(ids))
    assert decode_answer(FAST, ids, ("\n\n<|turn|>",), END) == ("some text\n\n", "stop", len(ids))


def test_a_special_token_that_is_spelled_as_text_is_text():
    pieces = [TOKENS.index(character) for character in "a<|turn|>b"]
    assert decode_answer(FAST, pieces, ("<|turn|>",)) == ("a", "stop", len(pieces) - 1)
    assert decode_answer(FAST, pieces, ()) == ("a<|turn|>b", "length", len(pieces))


@pytest.mark.parametrize("stop", ["turn", "|>", "<|tur", "<|turn|>|"])
def test_a_part_of_a_special_token_does_not_end_the_answer(stop):
    assert decode_answer(FAST, [*ids_of("a"), TURN, *ids_of("b")], (stop,)) == ("ab", "length", 3)


@pytest.mark.parametrize("character", ["é", "€", "😀"])
@pytest.mark.parametrize("kind", ["sp", "hf-legacy", "hf", "fast"])
def test_a_stop_string_may_begin_with_a_character_of_byte_tokens(tmp_path, kind, character):
    """Byte tokens in front of a special token may be held back, since more bytes could follow."""
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece())
    file = tmp_path / "tokenizer.model"
    tokenizer = LlamaTokenizerFast(file) if kind == "fast" else LlamaTokenizer(file, behaviour=kind)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    turn = tokenizer.convert_tokens_to_ids("<turn>")
    a, b = (tokenizer.convert_tokens_to_ids(piece) for piece in "ab")
    bytes_ = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in character.encode()]
    ids = [a, *bytes_, turn, b]
    assert decode_answer(tokenizer, ids, ("<turn>",)) == (f"a{character}", "stop", len(ids) - 1)
    assert decode_answer(tokenizer, ids, (f"{character}<turn>",)) == ("a", "stop", len(ids) - 1)
    assert decode_answer(tokenizer, ids, (f"a{character}<turn>b",)) == ("", "stop", len(ids))
    assert decode_answer(tokenizer, ids, (f"{character}<turn>c",)) == (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False), "length", len(ids),
    )  # fmt: skip


def test_control_pieces_of_a_model_are_special_in_stop_strings(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train_sentencepiece(control_symbols=["<turn>"]))
    tokenizer = LlamaTokenizer(tmp_path / "tokenizer.model", behaviour="sp")
    a, turn = tokenizer.convert_tokens_to_ids(["a", "<turn>"])
    assert decode_answer(tokenizer, [a, turn, a], ("a<turn>a",)) == ("", "stop", 3)
    assert decode_answer(tokenizer, [a, turn, a], ("<turn>",)) == ("a", "stop", 2)


@pytest.fixture(scope="module")
def turns(tmp_path_factory):
    """A model that answers "x" with "yz<|turn|>\\n<|tool|>ab" and then the end token."""
    template = {"chat_template": "{{ messages[-1].content }}"}
    folder = tmp_path_factory.mktemp("model") / "turns"
    return LLM(write_scripted_model(folder, byte_tokenizer(), script("xyz<|turn|>\n<|tool|>ab"), template), "native")


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        ("<|turn|>", "yz"),
        (["<|turn|>", "y"], ""),
        ("z<|turn|>\n", "y"),
        ("<|turn|>\n<|tool|>", "yz"),
        ("\n<|tool|>a", "yz"),
        ("ab<|end|>", "yz\n"),
        ("<|turn|>\n<|turn|>", "yz\nab"),
        (None, "yz\nab"),
        ([], "yz\nab"),
    ],
)
def test_every_call_stops_at_special_tokens(turns, stop, text):
    completion = turns.generate("x", stop=stop)
    assert (completion.text, completion.finish_reason) == (text, "stop")
    assert turns.chat([{"role": "user", "content": "x"}], stop=stop).text == text
    assert "".join(turns.stream("x", stop=stop)) == text
    assert "".join(turns.stream([{"role": "user", "content": "x"}], stop=stop)) == text


@pytest.mark.parametrize("stop", [3, [3], "", ["a", ""], [None], {"a": 1}, b"a", 1.5, True, "\ud800", ["a", "b\udfff"]])
def test_stop_strings_of_a_wrong_type_are_errors(turns, stop):
    with pytest.raises(RequestError, match=r"stop is .*must be None, a string or several strings"):
        turns.stream("x", stop=stop)


DECODERS = {
    "byte level": decoders.ByteLevel(),
    "byte level, fuse": decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()]),
    "ctc": decoders.CTC(),
    "wordpiece": decoders.WordPiece(),
    "bpe": decoders.BPEDecoder("y"),
    "none": None,
}


@pytest.mark.parametrize("clean_up", [False, True])
@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("text", ["xyz ,b!", "x .", "x n't", "x😀yé"])
def test_an_answer_does_not_contain_the_text_of_its_prompt(tmp_path, name, clean_up, text):
    tokenizer = byte_tokenizer()
    tokenizer.decoder = DECODERS[name]
    ids = ids_of(text)
    settings = {"clean_up_tokenization_spaces": clean_up}
    llm = LLM(write_scripted_model(tmp_path / "m", tokenizer, dict(itertools.pairwise(ids)), settings), "native")
    for length in range(1, len(ids)):
        prompt = ids[:length]
        expected = answer_after(tokenizer.decode(prompt), tokenizer.decode(ids))
        assert llm.generate(prompt).text == expected
        assert "".join(llm.stream(prompt)) == expected


def test_deltas_have_the_tokens_and_log_probabilities_of_their_text(turns):
    options = {"max_tokens": 30, "logprobs": 2, "stop": ["ab", "q"]}
    completion = turns.generate("x", **options)
    (answer,), stream = turns.start_deltas("x", **options)
    deltas = [delta for _, delta in stream]
    assert "".join(delta.text for delta in deltas) == completion.text == "yz\n"
    ids = [token for delta in deltas for token in delta.ids]
    assert [item.token for delta in deltas for item in delta.logprobs] == ids
    assert [item for delta in deltas for item in delta.logprobs] == list(completion.logprobs[: len(ids)])
    assert turns.tokenizer.decode(ids, skip_special_tokens=True) == "yz\n"  # not the tokens of the stop string
    assert (completion.stop, answer.stop, answer.completion().finish_reason) == ("ab", "ab", "stop")
    assert [delta.finish_reason for delta in deltas][-1] == "stop"
    ended = turns.generate("x", max_tokens=30)
    assert (ended.stop, ended.finish_reason) == (END, "stop")
    assert turns.generate("x", max_tokens=2).stop is None


def test_the_stop_string_and_special_tokens_may_be_part_of_the_text(turns):
    def text(**options):
        return turns.generate("x", max_tokens=30, **options).text

    assert text(stop="z") == "y"
    assert text(stop="z", include_stop_str_in_output=True) == "yz"
    assert text(stop="<|turn|>\n", include_stop_str_in_output=True) == "yz\n"
    assert text(skip_special_tokens=False) == "yz<|turn|>\n<|tool|>ab"
    assert text(skip_special_tokens=False, stop="<|tool|>") == "yz<|turn|>\n"
    assert text(stop=["z<|turn|>", "z"]) == text(stop=["z", "q"]) == "y"
    assert turns.generate("x", max_tokens=30, stop=["z\n", "z<|turn|>", "z"]).stop == "z"
    assert turns.generate("x", max_tokens=30, stop=["zq", "z<|turn|>"]).stop == "z<|turn|>"
    with pytest.raises(RequestError, match="skip_special_tokens is 1; it must be True or False"):
        text(skip_special_tokens=1)


@pytest.mark.parametrize(
    ("stop", "minimum", "text"),
    [
        ("z", 1, "y"),
        ("z", 2, "yz\nab"),
        (["z", "b"], 2, "yz\na"),
        ("z\n", 3, "y"),  # ends after the third token
        ("z\n", 4, "yz\nab"),
        ("<|turn|>", 2, "yz"),
        ("<|turn|>", 3, "yz\nab"),
        ("z<|turn|>", 2, "y"),
        ("z<|turn|>", 3, "yz\nab"),
        ("<|turn|>\n", 3, "yz"),
        ("<|turn|>\n", 4, "yz\nab"),
        ("z<|turn|>\n", 3, "y"),
        ("<|tool|>ab", 5, "yz\n"),
        ("\n<|tool|>", 4, "yz"),
        ("\n<|tool|>", 5, "yz\nab"),
        ("a", 5, "yz\n"),
        ("a", 6, "yz\nab"),
        ("b", 7, "yz\nab"),
    ],
)
def test_stop_strings_do_not_end_an_answer_before_its_minimum(turns, stop, minimum, text):
    answer = turns.generate("x", stop=stop, min_tokens=minimum)
    assert answer.text == text and len(answer.ids) >= minimum
    assert (answer.stop in (stop, *stop)) is (text != "yz\nab")
    assert "".join(turns.stream("x", stop=stop, min_tokens=minimum)) == text


def test_deltas_of_several_answers_and_the_progress_of_the_prompt(turns):
    from puna.answer import Delta, PromptProgress

    prompt = ids_of("x" * 150)
    options = {"max_tokens": 9, "temperature": 1.0, "seed": 3, "n": 3}
    expected = turns.generate(prompt, **options)
    for cached in (None, 149):
        answers, stream = turns.start_deltas(prompt, progress=True, **options)
        items = list(stream)
        progress = [item for index, item in items if isinstance(item, PromptProgress)]
        assert progress[-1].done == progress[-1].total == 150
        assert [item.done for item in progress] == sorted({item.done for item in progress})
        assert cached is None or progress[-1].cached == answers[0].cached_tokens == cached
        for number, completion in enumerate([expected, *expected.alternatives]):
            deltas = [item for index, item in items if index == number and isinstance(item, Delta)]
            assert "".join(delta.text for delta in deltas) == completion.text == answers[number].completion().text
            assert [token for delta in deltas for token in delta.ids] == list(completion.ids)


def test_deltas_of_a_conversation(turns):
    messages = [{"role": "user", "content": "x"}]
    (_,), stream = turns.start_deltas(messages, max_tokens=30)
    assert "".join(delta.text for _, delta in stream) == turns.chat(messages, max_tokens=30).text
    with pytest.raises(RequestError, match="template_kwargs is given, but the prompt is not a conversation"):
        turns.start_deltas("x", template_kwargs={"a": 1})
