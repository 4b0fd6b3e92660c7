"""Some 300 malformed data files: name, bytes, line that the error must name (None: only the file), and its words."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Malformed:
    name: str
    data: bytes
    line: int | None
    words: str
    """A regular expression."""


GOOD = {"prompt": "What is 2 + 2?", "completion": "4"}
GOOD_CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}

BAD_LINES: dict[str, tuple[bytes, str]] = {
    "truncated": (b'{"prompt": "a", "completion": "b', "not valid JSON"),
    "truncated after key": (b'{"prompt": "a", "completion"', "not valid JSON"),
    "missing brace": (b'{"prompt": "a", "completion": "b"', "not valid JSON"),
    "two objects": (b'{"prompt": "a", "completion": "b"} {"prompt": "c"}', "not valid JSON.*Extra data"),
    "single quotes": (b"{'prompt': 'a', 'completion': 'b'}", "not valid JSON"),
    "trailing comma": (b'{"prompt": "a", "completion": "b",}', "not valid JSON"),
    "plain text": (b"hello world", "not valid JSON"),
    "control character": (b'{"prompt": "a\tb", "completion": "c"}', "not valid JSON.*control character"),
    "bad escape": (b'{"prompt": "\\x41", "completion": "c"}', "not valid JSON"),
    "NaN": (b'{"prompt": "a", "completion": "b", "score": NaN}', "NaN is not a JSON value"),
    "Infinity": (b'{"prompt": "a", "completion": "b", "score": -Infinity}', "Infinity is not a JSON value"),
    "twice the same key": (b'{"prompt": "a", "prompt": "b", "completion": "c"}', "'prompt' occurs twice"),
    "deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "large number": (b'{"prompt": "a", "completion": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "list": (b'["a", "b"]', "must be an object"),
    "number": (b"17", "must be an object"),
    "text value": (b'"text"', "must be an object"),
    "null": (b"null", "must be an object"),
    "latin-1": ('{"prompt": "caf\u00e9", "completion": "b"}'.encode("latin-1"), "0xe9.*not UTF-8"),
    "truncated UTF-8": (b'{"prompt": "\xe4\xb8", "completion": "b"}', "not UTF-8"),
    "zero byte": (b'{"prompt": "a\0", "completion": "b"}', "is zero"),
    "zeros": (b"\0" * 40, "is zero"),
    "giant": (b'{"prompt": "' + b"x" * (17 * 2**20) + b'", "completion": "b"}', "the limit is 16.8 MB"),
}

BAD_ROWS: dict[str, tuple[object, str]] = {
    "no completion": ({"prompt": "a"}, "completion"),
    "no columns": ({}, "prompt"),
    "other columns": ({"question": "a", "answer": "b"}, "prompt"),
    "null completion": ({"prompt": "a", "completion": None}, "completion is null"),
    "number as completion": ({"prompt": "a", "completion": 4}, "completion is 4"),
    "list as prompt": ({"prompt": ["a"], "completion": "b"}, "prompt"),
    "bool as completion": ({"prompt": "a", "completion": True}, "completion is true"),
    "object as completion": ({"prompt": "a", "completion": {"text": "b"}}, "completion"),
    "empty answer": ({"prompt": "a", "completion": ""}, "empty"),
    "blank answer": ({"prompt": "a", "completion": " \n"}, "empty"),
    "lone surrogate": ({"prompt": "\ud800", "completion": "b"}, "surrogate"),
}

BAD_CHATS: dict[str, tuple[object, str]] = {
    "no messages": ({"messages": []}, "empty"),
    "messages is a text": ({"messages": "Hi"}, "must be a list"),
    "messages is null": ({"messages": None}, "must be a list"),
    "message is a text": ({"messages": ["Hi"]}, r"messages\[0\]"),
    "no role": ({"messages": [{"content": "Hi"}]}, r"messages\[0\].*role"),
    "unknown role": ({"messages": [{"role": "asistant", "content": "Hi"}]}, "asistant.*did you mean 'assistant'"),
    "no content": ({"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}, r"messages\[0\].*content"),
    "content is a number": ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\].*content"),
    "image": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
    "only a question": ({"messages": [{"role": "user", "content": "Hi"}]}, "no answer"),
    "empty answer": ({"messages": [GOOD_CHAT["messages"][0], {"role": "assistant", "content": ""}]}, "empty"),
    "weight is a text": ({"messages": [{"role": "assistant", "content": "a", "weight": "1"}]}, "weight"),
    "negative weight": ({"messages": [{"role": "assistant", "content": "a", "weight": -1}]}, "weight"),
    "weight of a question": ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "weight"),
    "only weights of 0": ({"messages": [{"role": "assistant", "content": "a", "weight": 0}]}, "no answer"),
    "tool_calls is a text": (
        {"messages": [GOOD_CHAT["messages"][0], {"role": "assistant", "tool_calls": "f()"}]},
        "tool_calls",
    ),
    "tools is a number": (GOOD_CHAT | {"tools": 3}, "tools"),
    "lone surrogate": (
        {"messages": [GOOD_CHAT["messages"][0], {"role": "assistant", "content": "\ud800"}]},
        "surrogate",
    ),
}

OTHER_LAYOUTS: dict[str, tuple[object, object, str]] = {
    "alpaca without output": (
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a"},
        "output",
    ),
    "alpaca with a number": ({"instruction": "a", "output": "b"}, {"instruction": 1, "output": "b"}, "instruction"),
    "alpaca with an empty answer": ({"instruction": "a", "output": "b"}, {"instruction": "a", "output": " "}, "empty"),
    "alpaca with a bad history": (
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "output": "b", "history": [["q"]]},
        "history",
    ),
    "sharegpt without value": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "human"}, {"from": "gpt", "value": "b"}]},
        r"conversations\[0\]",
    ),
    "sharegpt with an unknown speaker": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "humna", "value": "a"}, {"from": "gpt", "value": "b"}]},
        "humna",
    ),
    "sharegpt with a call that is not JSON": (
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "f("}]},
        "function_call",
    ),
    "empty text": ({"text": "a b c"}, {"text": ""}, "empty"),
    "text is a number": ({"text": "a b c"}, {"text": 1}, "text is 1"),
    "text is null": ({"text": "a b c"}, {"text": None}, "text is null"),
}

WHOLE_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\n\t\n", "is empty"),
    "byte-order mark": (b"\xef\xbb\xbf", "is empty"),
    "gzip": (gzip.compress(json.dumps(GOOD).encode()), "gunzip"),
    "zip": (b"PK\x03\x04" + bytes(30), "zip"),
    "bzip2": (b"BZh91AY&SY" + bytes(30), "bunzip2"),
    "xz": (b"\xfd7zXZ\0" + bytes(30), "unxz"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(30), "unzstd"),
    "UTF-16": ("\ufeff" + json.dumps(GOOD)).encode("utf-16-le")
    and (
        b"\xff\xfe" + json.dumps(GOOD).encode("utf-16-le"),
        "UTF-16",
    ),
    "UTF-16 big endian": (b"\xfe\xff" + json.dumps(GOOD).encode("utf-16-be"), "UTF-16"),
    "SQLite": (b"SQLite format 3\0" + bytes(80), "SQLite"),
    "Arrow": (b"ARROW1\0\0" + bytes(80), "Arrow"),
    "spreadsheet": (b"\xd0\xcf\x11\xe0" + bytes(80), "spreadsheet"),
    "PDF": (b"%PDF-1.7\n", "PDF"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}

BAD_JSON: dict[str, tuple[bytes, int | None, str]] = {
    "truncated list": (b'[\n{"prompt": "a", "completion": "b"},\n{"prompt": "c"', 3, "not valid JSON"),
    "list without end": (b'[\n{"prompt": "a", "completion": "b"}\n', 2, "comma or ] is missing"),
    "list without end after comma": (b'[\n{"prompt": "a", "completion": "b"},\n', 2, "does not end"),
    "missing comma": (b'[\n{"prompt": "a", "completion": "b"}\n{"prompt": "c"}]', 2, "comma or ] is missing"),
    "element is a number": (b'[\n{"prompt": "a", "completion": "b"},\n3]', 3, "must be an object"),
    "element is null": (b'[\n{"prompt": "a", "completion": "b"},\nnull]', 3, "must be an object"),
    "list of lists": (b'[[\n"a"]]', 1, "must be an object"),
    "NaN": (b'[\n{"prompt": "a", "completion": NaN}]', 2, "NaN is not a JSON value"),
    "empty list": (b"[]", None, "no rows"),
    "text after the object": (b'{"prompt": "a",\n"completion": "b"}\n\nx', 2, "text follows"),
    "columns as lists": (b'{\n"prompt": ["a", "b"],\n"completion": ["c", "d"]}', 1, "prompt"),
    "latin-1": (b'[{"prompt": "caf\xe9"}]', 1, "not UTF-8"),
    "zero byte": (b'[{"prompt": "a\0"}]', 1, "is zero"),
}

BAD_CSV: dict[str, tuple[bytes, int | None, str]] = {
    "only names": (b"prompt,completion\n", None, "no rows"),
    "too few fields": (b"prompt,completion\na,b\nc\n", 3, "1 field, .*names 2 columns"),
    "too many fields": (b"prompt,completion\na,b\nc,d,e\n", 3, "3 fields.*names 2 columns"),
    "too many fields before": (b"prompt,completion\na,b,c\nc,d\n", 2, "3 fields"),
    "equal names": (b"prompt,prompt\na,b\n", 1, "two columns are named 'prompt'"),
    "open quote": (b'prompt,completion\na,b\nc,"d\ne,f\n', 3, "close every quote"),
    "text after a quote": (b'prompt,completion\na,b\n"c"d,e\n', 3, "close every quote"),
    "latin-1": (b"prompt,completion\na,b\ncaf\xe9,b\n", 3, "0xe9.*not UTF-8"),
    "zero byte": (b"prompt,completion\na,b\nc\0,b\n", 3, "is zero"),
    "old Macintosh line ends": (b"prompt,completion\ra,b\r", 1, "between rows"),
    "field over the limit": (b"prompt,completion\na,b\n" + b"x" * 200_000 + b",b\n", 3, "131,072"),
    "no such columns": (b"question,answer\na,b\n", 2, "question"),
    "empty answer": (b"prompt,completion\na,b\nc,\n", 3, "empty"),
    "empty answer in quotes": (b'prompt,completion\na,b\nc,""\n', 3, "empty"),
    "missing header": (b"a,b\nc,d\n", 2, "prompt"),
}


def malformed_files() -> Iterator[Malformed]:
    """Yields every file, with the bad row at the start, in the middle and at the end of good rows."""
    good, chat = json.dumps(GOOD).encode(), json.dumps(GOOD_CHAT).encode()
    for title, (line, words) in BAD_LINES.items():
        counts = ((0, 2), (1, 1), (3, 0)) if len(line) < 10_000 else ((1, 1),)
        for before, after in counts:
            for end in (b"\n", b"\r\n") if len(line) < 10_000 else (b"\n",):
                data = end.join([good] * before + [line] + [good] * after) + end
                yield Malformed(f"{title} {before} {len(end)}.jsonl", data, before + 1, words)
    for kind, rows, fine in (("row", BAD_ROWS, good), ("chat", BAD_CHATS, chat)):
        for name, (row, words) in rows.items():
            title = f"{kind} {name}"
            for before, after in ((1, 1), (2, 0)):
                data = b"\n".join([fine] * before + [json.dumps(row).encode()] + [fine] * after)
                yield Malformed(f"{title} {before}.jsonl", data, before + 1, words)
            pretty = b"[" + fine + b",\n" + json.dumps(row).encode() + b"]"
            yield Malformed(f"{title}.json", pretty, 2, words)
    for title, (first, row, words) in OTHER_LAYOUTS.items():
        data = json.dumps(first) + "\n\n" + json.dumps(row) + "\n"
        yield Malformed(f"{title}.jsonl", data.encode(), 3, words)
    for title, (data, words) in WHOLE_FILES.items():
        for ending in ("jsonl", "json", "csv", "txt", "parquet"):
            yield Malformed(f"{title}.{ending}", data, None, words)
    for table, ending in ((BAD_JSON, "json"), (BAD_CSV, "csv")):
        for title, (data, number, words) in table.items():
            yield Malformed(f"{title}.{ending}", data, number, words)
    for title, data in (("other", b"text\na b\n"), ("truncated", b"PAR1" + bytes(200)), ("short", b"PAR1")):
        yield Malformed(f"{title}.parquet", data, None, "not a complete Parquet file")
    yield Malformed("UTF-32.jsonl", json.dumps(GOOD).encode("utf-32"), None, "UTF-32")
    yield Malformed("zero.txt", b"good line\nbad \0 line\n", 1, "is zero")
    yield Malformed("latin-1.txt", b"caf\xe9\n", 1, "not UTF-8")
    yield Malformed("unknown.xyz", b"some text\n", None, "rename it")
