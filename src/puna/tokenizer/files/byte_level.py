"""Byte-level BPE: the alphabet of bytes, pre-tokenizers by name, pipelines of `tokenizers`, Llama 3's tiktoken file.

`tokenizers` is imported only when a pipeline is built; the alphabet alone does not need it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

BYTE_TO_CHARACTER: dict[int, str] = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + index) for index, byte in enumerate(_OTHERS)
}
"""GPT-2's alphabet, a printable character for each byte (github.com/openai/gpt-2, src/encoder.py, 2019): printable
bytes of Latin-1 represent themselves; the other 68 bytes are the characters from U+0100 on, in order."""

CHARACTER_TO_BYTE: dict[str, int] = {character: byte for byte, character in BYTE_TO_CHARACTER.items()}

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    "\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d"
    "\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb"
    "\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
"""Cased letters, copied from deepseek-llm's tokenizer.json; \\p{L&} of newer Unicode versions has more."""


@dataclass(frozen=True)
class PreTokenizer:
    """Rules that split a text before BPE: regular expressions, each applied to the previous expression's pieces.

    Attributes:
        whole_tokens: a piece that is a token becomes that token without merging (`ignore_merges`).
        adds_bos: whether BOS is added if the file does not specify it.
    """

    expressions: tuple[str, ...]
    whole_tokens: bool = False
    adds_bos: bool = False


_LLAMA3_RULES = PreTokenizer((_LLAMA3,), whole_tokens=True, adds_bos=True)

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "gpt-2": PreTokenizer((_GPT2,)),
    "llama3": _LLAMA3_RULES,
    "llama-v3": _LLAMA3_RULES,
    "llama-bpe": _LLAMA3_RULES,
    "falcon3": _LLAMA3_RULES,
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "qwen2": PreTokenizer((_QWEN2,)),
    "deepseek-r1-qwen": PreTokenizer((_QWEN2,)),
    "tekken": PreTokenizer((_TEKKEN,), whole_tokens=True, adds_bos=True),
    "smollm": PreTokenizer((r"\p{N}", _GPT2)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "deepseek-coder": PreTokenizer(("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-llm": PreTokenizer(
        (
            "[\r\n]",
            rf"\s?[{_CASED}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _CJK,
            r"\p{N}+",
        )
    ),
}
"""Rules by the value of `tokenizer.ggml.pre`. The expressions come from the models' tokenizer.json files, as in
llama.cpp's src/llama-vocab.cpp."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """Returns the rules for a value of `tokenizer.ggml.pre`.

    Raises:
        TokenizerError: the name is unknown. Other rules would silently give other ids.
    """
    if name not in PRE_TOKENIZERS:
        raise TokenizerError(
            f"tokenizer.ggml.pre = {name!r}: unknown pre-tokenizer; puna knows {', '.join(sorted(PRE_TOKENIZERS))}. "
            "Use the model's tokenizer.json instead"
        )
    return PRE_TOKENIZERS[name]


def build(
    vocab: dict[str, int], merges: list[tuple[str, str]], rules: PreTokenizer, added: Sequence[AddedToken]
) -> Tokenizer:
    """Builds a byte-level BPE pipeline.

    Args:
        vocab: token to id; tokens are written in the alphabet above, added tokens as plain text.
        merges: pairs of tokens, in the order in which they merge.
        added: tokens that are split off the text first.

    Raises:
        TokenizerError: a merge contains a token that is not in the vocabulary.
    """
    from tokenizers import Tokenizer, decoders
    from tokenizers.models import BPE

    try:
        engine = BPE(vocab, merges, ignore_merges=rules.whole_tokens)
    except Exception as exc:  # tokenizers raises no narrower class
        raise TokenizerError(f"the vocabulary and its merges do not fit together: {exc}") from exc
    pipeline = Tokenizer(engine)
    pipeline.pre_tokenizer = _pipeline_step(rules)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.add_special_tokens([token for token in added if token.special])
    pipeline.add_tokens([token for token in added if not token.special])
    return pipeline


def _pipeline_step(rules: PreTokenizer) -> Any:
    """Returns the rules as a pre-tokenizer of `tokenizers`."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(rule), "isolated", False) for rule in rules.expressions]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    return pre_tokenizers.Sequence(steps)


_PROBES = (
    "Hello, world! It's 2024; we'll see 1234567 things, won't WE'LL?",
    "  leading and   inner   spaces, trailing  ",
    "\n\n\nlines\r\n\ttabs \n next\n \n  end\n",
    "x=3.14159 y+=10 'quoted' \"double\" (a[0]) {b} <c/> ##!! ...--- 50% $99 #1 @me",
    "CamelCase HTTPServer snake_case kebab-case ALLCAPS iPhone15Pro",
    "café naïve Übung страна ελλάδα مرحبا שלום",
    "你好世界 123中文 こんにちは 한국어 हिन्दी ไทย",
    "🚀 (normal) 😶\u200d🌫️ ✅ ½ ① ١٢٣ — … “q”",
    "3 33 333 3333 33333 333333 3.3 3..3 3...3 1,000,000",
    "I'm you're he'd they've I'LL it'S ’s a'b",
)
"""Texts that different rules split differently: digits, capitals, contractions, spaces, scripts, punctuation."""

_PREFERRED = ("llama-bpe", "smollm", "gpt-2", "qwen2", "tekken")
"""Names that `name_of` prefers if several names have the same rules."""


def name_of(step: Any, whole_tokens: bool) -> str:
    """Returns the `tokenizer.ggml.pre` whose rules split texts as the pre-tokenizer of a pipeline does.

    Args:
        step: the pre-tokenizer.
        whole_tokens: whether the pipeline's model has `ignore_merges`.

    Raises:
        TokenizerError: there is no such name. Another name would silently give other ids.
    """
    splits = [step.pre_tokenize_str(text) for text in _PROBES] if step is not None else None
    for name in (*_PREFERRED, *PRE_TOKENIZERS):
        rules = PRE_TOKENIZERS[name]
        candidate = _pipeline_step(rules)
        if rules.whole_tokens == whole_tokens and splits == [candidate.pre_tokenize_str(text) for text in _PROBES]:
            return name
    raise TokenizerError(
        "the tokenizer splits texts differently from every pre-tokenizer that puna can name in a GGUF file "
        f"({', '.join(sorted(PRE_TOKENIZERS))}); llama.cpp would produce other ids"
    )


RESERVED = 256
"""Number of special tokens of Llama 3 and 3.1; their ids follow the ranks (llama_models/llama3/tokenizer.py)."""

BOS, EOS, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"


def read_tiktoken(path: Path) -> Tokenizer:
    """Reads Llama 3's `tokenizer.model`, whose lines are a base64 token and its rank, and adds special tokens.

    Raises:
        TokenizerError: a line is not a base64 token with its rank, or the ranks are not 0, 1, 2, ...
    """
    from tokenizers import AddedToken

    tokens = _read_ranks(path.read_bytes(), str(path))
    vocab = {_spelled(token): rank for rank, token in enumerate(tokens)}
    if len(vocab) != len(tokens) or not all(_spelled(bytes((byte,))) in vocab for byte in range(256)):
        raise TokenizerError(f"{path}: a token appears twice, or a byte has no token; download the file again")
    special = _special_tokens()
    merges = merges_of(vocab, vocab)
    vocab |= {token: len(tokens) + index for index, token in enumerate(special)}
    added = [AddedToken(token, normalized=False, special=True) for token in special]
    return build(vocab, merges, pre_tokenizer("llama-bpe"), added)


def write_tiktoken(vocab: Mapping[str, int], added: Mapping[int, str]) -> bytes | None:
    """Returns a vocabulary as a tiktoken file of ranks: the inverse of `read_tiktoken`.

    Args:
        vocab: token, in the alphabet above, to id; it may include added tokens.
        added: id to text of the tokens that are not ranks.

    Returns:
        The bytes of the file; None if Meta's code for Llama 3 would read a different vocabulary from them.
    """
    base = {index: token for token, index in vocab.items() if index not in added}
    special = _special_tokens()
    if sorted(base) != list(range(len(base))) or sorted(added) != list(range(len(base), len(base) + RESERVED)):
        return None
    named = (0, 1, 6, 7, 9)  # BOS, EOS, the two header tokens and <|eot_id|>, which Meta's code uses by name
    if any(added[len(base) + at] != special[at] for at in named):
        return None
    try:
        tokens = [bytes(CHARACTER_TO_BYTE[character] for character in base[rank]) for rank in range(len(base))]
    except KeyError:
        return None
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def _special_tokens() -> list[str]:
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


def merges_of(tokens: Iterable[str], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns the merges of a vocabulary: all pairs of its tokens that concatenate to one of `tokens`.

    Args:
        tokens: in the order in which merges form them. Tiktoken merges the pair whose result has the lowest rank,
            SentencePiece the pair whose result has the best score. Pairs with the same result are ordered by their ids.
    """
    merges: list[tuple[str, str]] = []
    for token in tokens:
        pairs = [(token[:at], token[at:]) for at in range(1, len(token)) if token[:at] in vocab and token[at:] in vocab]
        if len(pairs) > 1:
            pairs.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
        merges += pairs
    return merges


def _spelled(data: bytes) -> str:
    """Returns the characters of the alphabet that represent the bytes."""
    return data.decode("latin-1").translate(BYTE_TO_CHARACTER)
