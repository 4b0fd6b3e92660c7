"""Byte-level BPE: the alphabet of bytes, pre-tokenizers by name, pipelines of `tokenizers`, Llama 3's tiktoken file.

`tokenizers` is imported only when a pipeline is built; the alphabet alone does not need it.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from operator import add, eq
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.errors import TokenizerError, show
from puna.files import read_file
from puna.files.tokenizer_json import library_errors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from tokenizers import AddedToken, Tokenizer

    Hashes = NDArray[np.uint64]
    Indices = NDArray[np.int64]

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_NOT_PRINTABLE = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

BYTE_TO_CHARACTER: dict[int, str] = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + index) for index, byte in enumerate(_NOT_PRINTABLE)
}
"""GPT-2's alphabet, a printable character for each byte (github.com/openai/gpt-2, src/encoder.py, 2019): printable
bytes of Latin-1 represent themselves; the other 68 bytes are the characters from U+0100 on, in order."""

CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}

_TO_LATIN_1 = dict.fromkeys(_NOT_PRINTABLE, 0xFFFF) | {ord(char): byte for char, byte in CHARACTER_TO_BYTE.items()}
"""Table for `str.translate`: a character of the alphabet becomes its byte, and others become characters beyond it."""


@dataclass(frozen=True)
class PreTokenizer:
    """Rules that split a text before BPE: regular expressions, each applied to the previous expression's pieces.

    Attributes:
        after_bytes: expressions that are applied after the bytes have become characters of GPT-2's alphabet.
        whole_tokens: whether a piece that is a token becomes that token without merging (`ignore_merges`).
        adds_bos: whether BOS is added if the file does not specify it.
    """

    expressions: tuple[str, ...]
    after_bytes: tuple[str, ...] = ()
    whole_tokens: bool = False
    adds_bos: bool = False


@cache
def pre_tokenizers() -> dict[str, PreTokenizer]:
    """Returns rules by the value of `tokenizer.ggml.pre`; of the names of equal rules, the most usual one is first.

    The names are those of llama.cpp's src/llama-vocab.cpp. The expressions are those of the models' tokenizer.json
    files, in the syntax of `tokenizers` (Oniguruma); llama.cpp approximates some, and splits falcon3 like Llama 3.
    """
    rows = json.loads(Path(__file__).with_name("pre_tokenizers.json").read_text())
    return {name: _rules(row) for row in rows for name in row["names"]}


def _rules(row: dict[str, Any]) -> PreTokenizer:
    expressions, after_bytes = tuple(row["expressions"]), tuple(row.get("after_bytes", ()))
    return PreTokenizer(expressions, after_bytes, row.get("whole_tokens", False), row.get("adds_bos", False))


def pre_tokenizer(name: str) -> PreTokenizer:
    """Returns the rules for a value of `tokenizer.ggml.pre`.

    Raises:
        TokenizerError: the name is unknown. Guessing the rules could give wrong ids without an error.
    """
    if name not in pre_tokenizers():
        raise TokenizerError(
            f"tokenizer.ggml.pre = {show(name)}: unknown pre-tokenizer; puna knows {_names()}. Use the model's "
            "Hugging Face folder, which has a tokenizer.json, or convert that folder to GGUF again"
        )
    return pre_tokenizers()[name]


def _names() -> str:
    return ", ".join(sorted(pre_tokenizers()))


def pipeline_step(rules: PreTokenizer) -> Any:
    """Returns the rules as a pre-tokenizer of `tokenizers`."""
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    def splits(expressions: tuple[str, ...]) -> list[Any]:
        return [Split(Regex(expression), "isolated", False) for expression in expressions]

    to_bytes = ByteLevel(add_prefix_space=False, use_regex=False)
    return Sequence([*splits(rules.expressions), to_bytes, *splits(rules.after_bytes)])


def build(
    vocab: dict[str, int], merges: list[tuple[str, str]], rules: PreTokenizer, added: Sequence[AddedToken]
) -> Tokenizer:
    """Builds a byte-level BPE pipeline.

    Args:
        vocab: token to id; tokens are written in GPT-2's alphabet, added tokens as plain text.
        merges: pairs of tokens, in the order in which they merge.
        added: tokens that are split off the text first.

    Raises:
        TokenizerError: a merge contains a token that is not in the vocabulary.
    """
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    with library_errors("the vocabulary and its merges do not fit together"):
        pipeline = Tokenizer(BPE(vocab, merges, ignore_merges=rules.whole_tokens))
        pipeline.pre_tokenizer = pipeline_step(rules)
        pipeline.decoder = decoders.ByteLevel()
        pipeline.add_special_tokens([token for token in added if token.special])
        pipeline.add_tokens([token for token in added if not token.special])
        return pipeline


_PROBES = (
    "Hello, world! It's 2024; we'll see 1234567 things, won't WE'LL?",
    "  leading and   inner   spaces, trailing  ",
    "\n\n\nlines\r\n\ttabs \n next\n \n  end\n",
    "x=3.14159 y+=10 'quoted' \"double\" (a[0]) {b} <c/> ##!! ...--- 50% $99 #1 @me `c` a/b://",
    "CamelCase HTTPServer snake_case kebab-case ALLCAPS iPhone15Pro",
    "café naïve Übung страна ελλάδα مرحبا שלום",
    "你好世界 123中文 こんにちは 한국어 हिन्दी ไทย",
    "🚀 (normal) 😶\u200d🌫️ ✅ ½ ① ١٢٣ — … “q”",
    "3 33 333 3333 33333 333333 3.3 3..3 3...3 1,000,000 1234a 12345_ 123456é",
    "I'm you're he'd they've I'LL it'S ’s a'b don't've O'Neill's",
    "e\u0301a\u0308 k\u0323 \u0301x क्षि !\u0301 a\u0301 b",
    "…한글。中文，ㄅㄆ！「か」 ハ a!\n b.\n\n c?\r\n",
    "a   b     c" + " " * 40 + "d" + " " * 700 + "e",
    "it'sure l'lama  12   345 \n 6",
    "<sentinel:12>IMGIMGABZ word\u00a0word\u3000word",
)
"""Texts that different rules split differently: digits, capitals, contractions, spaces, scripts, punctuation, marks."""


@library_errors("the tokenizer cannot split texts")
def name_of(pipeline: Tokenizer) -> str:
    """Returns the `tokenizer.ggml.pre` whose rules give the ids of a byte-level BPE pipeline.

    Raises:
        TokenizerError: there is no such name, or the pipeline changes texts first. A wrong name would give wrong ids
            without an error.
    """
    step, normalizer = pipeline.pre_tokenizer, pipeline.normalizer
    allowed = [(text, unicodedata.normalize("NFC", text)) for text in _PROBES]  # llama.cpp does not apply NFC
    if normalizer is not None and not all(normalizer.normalize_str(texts[0]) in texts for texts in allowed):
        raise TokenizerError(
            f"the tokenizer changes texts before it splits them ({str(normalizer)[:80]}), which a GGUF file cannot "
            "express; convert to hf"
        )
    names = {rules: name for name, rules in reversed(pre_tokenizers().items())}
    matches = [] if step is None else [rules for rules in reversed(names) if _same_splits(step, pipeline_step(rules))]
    whole_tokens = bool(json.loads(pipeline.to_str())["model"].get("ignore_merges"))
    for rules in matches:
        if rules.whole_tokens == whole_tokens:
            return names[rules]
    if matches and _all_tokens_merge(pipeline):
        return names[matches[0]]
    raise TokenizerError(
        "the tokenizer splits texts differently from every pre-tokenizer that puna can name in a GGUF file "
        f"({_names()}); llama.cpp would produce other ids"
    )


def _same_splits(step: Any, other: Any) -> bool:
    """Whether two pre-tokenizers split every text of _PROBES in the same way."""
    return all(step.pre_tokenize_str(text) == other.pre_tokenize_str(text) for text in _PROBES)


def _all_tokens_merge(pipeline: Tokenizer) -> bool:
    """Whether the merges form every token from its bytes, so that `ignore_merges` changes no ids."""
    from tokenizers import Tokenizer

    content = json.loads(pipeline.to_str())
    content["model"]["ignore_merges"] = False
    model = Tokenizer.from_str(json.dumps(content)).model
    added = {token.content for token in pipeline.get_added_tokens_decoder().values()}
    return all(len(model.tokenize(token)) == 1 for token in content["model"]["vocab"] if token not in added)


RESERVED = 256
"""Number of special tokens of Llama 3 and 3.1; their ids follow the file's ranks (llama_models/llama3/tokenizer.py)."""

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"


_RANKS_LIMIT = 32 * 2**20
"""Maximum size of a tiktoken file in bytes; that of Llama 3 has 2.2 MB."""


def read_tiktoken(path: Path) -> Tokenizer:
    """Reads Llama 3's `tokenizer.model`, whose lines are a base64 token and its rank, and adds special tokens.

    Raises:
        TokenizerError: a line is not a base64 token with its rank, or the ranks are not 0, 1, 2, ...
    """
    from tokenizers import AddedToken

    tokens = _read_ranks(read_file(path, TokenizerError, _RANKS_LIMIT), str(path))
    vocab = {token: rank for rank, token in enumerate(_in_alphabet(tokens))}
    if len(vocab) != len(tokens) or not vocab.keys() >= CHARACTER_TO_BYTE.keys():
        fault = "a token appears twice" if len(vocab) != len(tokens) else "a byte has no token"
        raise TokenizerError(f"{path}: {fault}; download the file again")
    special = special_tokens()
    merges = merges_of(vocab, vocab)
    vocab |= {token: len(tokens) + index for index, token in enumerate(special)}
    added = [AddedToken(token, normalized=False, special=True) for token in special]
    return build(vocab, merges, pre_tokenizer("llama-bpe"), added)


def write_tiktoken(vocab: Mapping[str, int], added: Mapping[int, str]) -> bytes | None:
    """Returns a vocabulary as a tiktoken file of ranks: the inverse of `read_tiktoken`.

    Args:
        vocab: token, in GPT-2's alphabet, to id; it may include added tokens.
        added: id to text of the tokens that the file does not contain.

    Returns:
        The bytes of the file; None if Meta's code for Llama 3 would read a different vocabulary from them.
    """
    base = {index: token for token, index in vocab.items() if index not in added}
    special = special_tokens()
    if sorted(base) != list(range(len(base))) or sorted(added) != list(range(len(base), len(base) + RESERVED)):
        return None
    named = (0, 1, 6, 7, 9)  # BOS, EOS, the two header tokens and <|eot_id|>, which Meta's code uses by name
    if any(added[len(base) + index] != special[index] for index in named):
        return None
    tokens = [base[rank] for rank in range(len(base))]
    try:
        data = "".join(tokens).translate(_TO_LATIN_1).encode("latin-1")
    except UnicodeEncodeError:
        return None
    spans = itertools.pairwise(itertools.accumulate(map(len, tokens), initial=0))
    encoded = (binascii.b2a_base64(data[start:end], newline=False) for start, end in spans)
    return b"".join(token + b" %d\n" % rank for rank, token in enumerate(encoded))


def special_tokens() -> list[str]:
    """Returns the 256 special tokens in the order of their ids, with the names of Hugging Face's Llama 3.1 files."""
    named = {
        0: BOS, 1: EOS, 4: PAD, 6: "<|start_header_id|>", 7: "<|end_header_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>",
        10: "<|python_tag|>",
    }  # fmt: skip
    reserved = (f"<|reserved_special_token_{number}|>" for number in range(RESERVED))
    return [named[index] if index in named else next(reserved) for index in range(RESERVED)]


def _read_ranks(data: bytes, name: str) -> list[bytes]:
    """Returns the tokens in the order of their ranks."""
    tokens: list[bytes] = []
    for number, line in enumerate(data.splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        try:
            token, rank = base64.b64decode(fields[0], validate=True), int(fields[1])
        except (IndexError, ValueError, binascii.Error) as exc:
            raise TokenizerError(
                f"{name}: line {number} is not a base64 token with its rank; download the file again"
            ) from exc
        if rank != len(tokens) or not token:
            raise TokenizerError(
                f"{name}: line {number} has rank {rank}, expected {len(tokens)}; download the file again"
            )
        tokens.append(token)
    return tokens


_MAX_TOKEN = 1024
"""Limit on the characters of a token; known ones have up to 256."""

_FACTOR = 0x9E3779B97F4A7C15
"""Factor of the hashes of tokens; odd, so that it has an inverse modulo 2**64."""


def merges_of(tokens: Iterable[str], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns the merges of a vocabulary: all pairs of its tokens that concatenate to one of `tokens`.

    Hashes find the pairs, because looking up every part of every token takes half a second for 128,000 tokens.

    Args:
        tokens: the results of merges, in order. Tiktoken merges the pair whose result has the lowest rank,
            SentencePiece the pair whose result has the best score. Pairs with the same result are ordered by their ids.

    Raises:
        TokenizerError: a token has too many characters, or two tokens have the same hash.
    """
    import numpy as np  # here, because the alphabet alone does not need it

    results, keys = list(tokens), list(vocab)
    long = next((token for token in results if len(token) > _MAX_TOKEN), None)
    if long is not None:
        raise TokenizerError(f"the token {show(long)} has {len(long)} characters; the limit is {_MAX_TOKEN}")
    if not keys:
        return []
    spans, starts, ends = _spans(keys)
    find = _index(spans(starts, ends))
    if results != keys:
        spans, starts, ends = _spans(results)
    result = np.repeat(np.arange(len(results)), ends - starts)  # of each character
    middle = np.flatnonzero(np.arange(len(result)) > starts[result])  # where the second part of a pair begins
    left = find(spans(starts[result[middle]], middle))
    middle, left = middle[left >= 0], left[left >= 0]
    right = find(spans(middle, ends[result[middle]]))
    result, left, right = result[middle][right >= 0], left[right >= 0], right[right >= 0]
    ids = np.fromiter(vocab.values(), np.int64, len(keys))
    by_ids = np.lexsort((ids[left], result))  # the first part of a token determines the second
    first, second = ([keys[i] for i in part[by_ids].tolist()] for part in (left, right))
    if not all(map(eq, map(add, first, second), map(results.__getitem__, result.tolist()))):
        raise TokenizerError("two parts of tokens have the same hash, so the merges are unknown; use a tokenizer.json")
    return list(zip(first, second, strict=True))


def _index(hashes: Hashes) -> Callable[[Hashes], Indices]:
    """Returns a function that finds hashes among the given ones: their indices, or -1.

    The 20 highest bits select a run of the sorted hashes, which is faster than a binary search.
    """
    import numpy as np

    order, shift = hashes.argsort(), np.uint64(44)
    in_order = np.append(hashes[order], np.uint64(2**64 - 1))
    sizes = np.bincount((hashes >> shift).astype(np.int64), minlength=2**20)
    begins, longest = sizes.cumsum() - sizes, sizes.max()
    order = np.append(order, -1)
    if (in_order[1:] == in_order[:-1]).any():
        raise TokenizerError("two tokens have the same hash, so the merges are unknown; use a tokenizer.json")

    def find(wanted: Hashes) -> Indices:
        index = begins[(wanted >> shift).astype(np.int64)]
        for _ in range(longest):
            index += in_order[index] < wanted
        return np.where(in_order[index] == wanted, order[index], -1)

    return find


def _spans(tokens: Sequence[str]) -> tuple[Callable[[Indices, Indices], Hashes], Indices, Indices]:
    """Returns a function that hashes spans of the concatenated tokens, and where each token starts and ends.

    The hash of the characters c0, c1, ... is (c0 + 1) * factor + (c1 + 1) * factor**2 + ..., modulo 2**64: the
    difference of two sums over all characters, divided by a power of the factor.
    """
    import numpy as np

    characters = np.frombuffer("".join(tokens).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    ends = np.fromiter(map(len, tokens), np.int64, len(tokens)).cumsum()

    def powers(factor: int) -> Hashes:
        return np.multiply.accumulate(np.append(np.uint64(1), np.full(len(characters), factor, np.uint64)))

    sums = np.append(np.uint64(0), ((characters + np.uint64(1)) * powers(_FACTOR)[1:]).cumsum())
    inverse = powers(pow(_FACTOR, -1, 2**64))
    return lambda first, last: (sums[last] - sums[first]) * inverse[first], np.append(0, ends[:-1]), ends


def _in_alphabet(tokens: Sequence[bytes]) -> list[str]:
    """Returns tokens with their bytes as characters of the alphabet."""
    import numpy as np

    characters = np.array([ord(BYTE_TO_CHARACTER[byte]) for byte in range(256)], np.uint32)
    text = characters[np.frombuffer(b"".join(tokens), np.uint8)].astype("<u4").tobytes().decode("utf-32-le")
    ends = np.fromiter(map(len, tokens), np.int64, len(tokens)).cumsum().tolist()
    return [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
