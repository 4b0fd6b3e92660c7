"""Errors for tokenizer.json files with which the library `tokenizers` would abort, panic or exhaust the memory."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from puna import load_tokenizer
from puna.errors import TokenizerError
from puna.files.tokenizer_json import check_pipeline, library_errors, read_pipeline
from puna.tokenizer import StreamDecoder

VALID_CHARSMAP = base64.b64encode((8).to_bytes(4, "little") + bytes(8) + b"text\0").decode()


def pipeline(**changes: Any) -> dict[str, Any]:
    """Returns the content of a byte-level tokenizer.json with some parts replaced."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return json.loads(tokenizer.to_str()) | changes


def replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """Returns a Replace step of tokenizer.json."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(kind: str, *steps: dict[str, Any]) -> dict[str, Any]:
    """Returns a Sequence of steps of tokenizer.json; `kind` is the key of the list, such as "decoders"."""
    return {"type": "Sequence", kind: list(steps)}


def charsmap(text: Any) -> dict[str, Any]:
    """Returns a Precompiled normalizer of tokenizer.json with this character map."""
    return {"type": "Precompiled", "precompiled_charsmap": text}


TEXT_PLACEHOLDER = {"Sequence": {"id": "A", "type_id": 0}}


def template(pieces: list[Any], **tokens: Any) -> dict[str, Any]:
    """Returns a TemplateProcessing post-processor of tokenizer.json."""
    return {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": tokens}


REFUSED_PARTS: dict[str, tuple[dict[str, Any], str]] = {
    "a map of 4 GB": ({"normalizer": charsmap("/////wAAAAAAAAAA")}, "announces a table of 4294967295"),
    "a map of 2 GB in a sequence": (
        {"normalizer": sequence("normalizers", charsmap("////fwAAAAA="))},
        "announces a table of 2147483647",
    ),
    "an empty map": ({"normalizer": charsmap("")}, "has 0 bytes"),
    "a map with an empty table": ({"normalizer": charsmap("AAAAAAAAAAA=")}, "a table of 0"),
    "a map that is not base64": ({"normalizer": charsmap("***")}, "not base64"),
    "a map that is a number": ({"normalizer": charsmap(5)}, "not base64"),
    "pieces of length 0": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "length must be from 1"),
    "pieces of length 2^63": ({"pre_tokenizer": {"type": "FixedLength", "length": 2**63}}, "length must be from 1"),
    "strip of 2^64": ({"decoder": {"type": "Strip", "content": "x", "start": 0, "stop": 2**64 - 1}}, "stop must be"),
    "search for nothing": ({"normalizer": replace({"String": ""}, "xx")}, "empty text"),
    "search for an empty expression": ({"normalizer": replace({"Regex": ""}, "xx")}, "empty text"),
    "split at nothing": (
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": ""}, "behavior": "Removed", "invert": False}},
        "empty text",
    ),
    "a long replacement": ({"normalizer": replace({"String": "a"}, "x" * 100)}, "100 times longer"),
    "repeated replacements": (
        {"normalizer": sequence("normalizers", *[sequence("normalizers", replace({"String": "x"}, "x" * 10))] * 3)},
        "1000 times longer",
    ),
    "replacements in the decoder": (
        {"decoder": sequence("decoders", *[replace({"String": "x"}, "x" * 10)] * 9)},
        "1000000000 times longer",
    ),
    "a long prefix": ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "1000000 times longer"),
    "a text repeated by templates": (
        {"post_processor": sequence("processors", *[template([TEXT_PLACEHOLDER] * 10)] * 9)},
        "1000000000 times longer",
    ),
    "many ids of a special token": (
        {"post_processor": template([TEXT_PLACEHOLDER], a={"id": "a", "ids": [1] * 1000, "tokens": ["a"]})},
        "1000 times longer",
    ),
    "an id of 2^31 in BPE": (
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 2**31}, "merges": []}},
        "the id 2147483648; the limit is 4000000",
    ),
    "an id of 2^31 in WordPiece": (
        {
            "model": {
                "type": "WordPiece",
                "unk_token": "a",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 1,
                "vocab": {"a": 0, "b": 2**31},
            }
        },
        "the id 2147483648; the limit is 4000000",
    ),
    "merges without their prefix": (
        {"model": {"type": "BPE", "vocab": {"a": 0, "é": 1}, "merges": ["a é"], "continuing_subword_prefix": "z"}},
        "continuing_subword_prefix",
    ),
    "pairs without their prefix": (
        {"model": {"type": "BPE", "vocab": {"a": 0, "é": 1}, "merges": [["a", "é"]], "continuing_subword_prefix": "z"}},
        "continuing_subword_prefix",
    ),
}


@pytest.mark.parametrize("name", REFUSED_PARTS)
def test_parts_that_abort_or_exhaust_the_memory_are_refused(tmp_path, name):
    changes, message = REFUSED_PARTS[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline(**changes)))
    with pytest.raises(TokenizerError, match=f"tokenizer.json: .*{message}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"normalizer": replace({"String": " "}, "▁")},
        {"normalizer": sequence("normalizers", {"type": "Prepend", "prepend": "▁"}, replace({"Regex": " +"}, "▁▁"))},
        {"normalizer": charsmap(VALID_CHARSMAP)},
        {"pre_tokenizer": {"type": "FixedLength", "length": 4}},
        {"decoder": {"type": "Strip", "content": " ", "start": 1, "stop": 0}},
        {
            "post_processor": template(
                [{"SpecialToken": {"id": "a", "type_id": 0}}, TEXT_PLACEHOLDER], a={"id": "a", "ids": [0]}
            )
        },
        {"model": {"type": "BPE", "vocab": {"a": 0, "##b": 1}, "merges": ["a ##b"], "continuing_subword_prefix": "##"}},
        {"model": None, "normalizer": 5, "decoder": [], "post_processor": {"single": 3, "special_tokens": [4]}},
    ],
)
def test_harmless_and_unknown_parts_pass_the_check(changes):
    check_pipeline(pipeline(**changes))


def test_padding_and_truncation_of_the_file_are_ignored(tmp_path):
    padding = {"strategy": {"Fixed": 10**12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "x"}
    truncation = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 5}
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline(padding=padding, truncation=truncation)))
    assert len(read_pipeline(tmp_path / "tokenizer.json")[0].encode("hello").ids) == 5


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"normalizer": replace({"Regex": "(?=)"}, "xx")}, "Hello"),
        ({"normalizer": replace({"Regex": "(x+x+)+y"}, "xx")}, "x" * 40),
        ({"normalizer": charsmap(VALID_CHARSMAP)}, "Hello"),
        ({"post_processor": template([{"SpecialToken": {"id": "zz", "type_id": 0}}])}, "Hello"),
        ({"post_processor": template([{"Sequence": {"id": "B", "type_id": 0}}])}, "Hello"),
    ],
)
def test_a_panic_while_encoding_is_a_puna_error(tmp_path, changes, text):
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline(**changes)))
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path).encode(text)
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)([text, text])


def test_a_panic_while_decoding_is_a_puna_error(tmp_path):
    decoder = {"type": "Strip", "content": "H", "start": 5, "stop": 9}
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline(decoder=decoder)))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("H")
    with pytest.raises(TokenizerError, match="cannot decode"):
        tokenizer.decode(ids)
    with pytest.raises(TokenizerError, match="cannot decode"):
        tokenizer.convert_tokens_to_string(["H"])
    stream = StreamDecoder(tokenizer)
    assert stream.push(ids[0]) + stream.finish() == ""  # streams strip without the library


def test_a_panic_while_streaming_is_a_puna_error(tmp_path):
    strip = {"type": "Strip", "content": "H", "start": 5, "stop": 9}
    decoder = sequence(
        "decoders", {"type": "CTC", "pad_token": "", "word_delimiter_token": "|", "cleanup": False}, strip
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline(decoder=decoder)))
    tokenizer = load_tokenizer(tmp_path)
    stream = StreamDecoder(tokenizer)
    with pytest.raises(TokenizerError, match="cannot decode"):
        stream.push(tokenizer.encode("H")[0]), stream.finish()


def test_an_error_in_a_step_of_a_stream_is_a_puna_error(tmp_path):
    slow = pipeline(decoder=replace({"Regex": "(x+x+)+y"}, "xx"))
    slow["model"]["vocab"]["x" * 40] = 256
    (tmp_path / "tokenizer.json").write_text(json.dumps(slow))
    with pytest.raises(TokenizerError, match="cannot decode"):
        StreamDecoder(load_tokenizer(tmp_path)).push(256)


def test_interrupts_are_not_library_errors():
    for kind in (KeyboardInterrupt, SystemExit):
        with pytest.raises(kind), library_errors("reading"):
            raise kind


def test_an_abort_of_the_library_does_not_end_the_process(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline(normalizer=charsmap("/////wAAAAAAAAAA"))))
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "import puna\n"
        f"try: puna.load_tokenizer({str(tmp_path)!r})\n"
        "except puna.PunaError: print('refused')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (0, "refused\n"), run.stderr


def test_a_file_with_too_many_values_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"a": [' + "[]," * 3_000_000 + "[]]}")
    with pytest.raises(TokenizerError, match="about 6000004 JSON values; the limit is 4000000"):
        read_pipeline(path)
