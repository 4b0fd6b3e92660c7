"""Byte-level BPE: GPT-2's spelling of bytes as characters, and the pipelines that files describe by name only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from puna.errors import TokenizerError
from puna.tokenizer.byte_alphabet import BYTE_TO_CHARACTER

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
_DIGITS = (r"\p{N}", _GPT2)
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
"""Cased letters as deepseek-llm's tokenizer.json lists them (an older Unicode than \\p{L&} of today)."""


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before BPE: expressions one after the other, each cutting what the one before left.

    Attributes:
        whole_tokens: a piece that is a token is taken whole, whatever its merges (`ignore_merges`).
        adds_bos: whether BOS is put in front where the file does not say.
    """

    expressions: tuple[str, ...]
    whole_tokens: bool = False
    adds_bos: bool = False


_LLAMA3_RULES = PreTokenizer((_LLAMA3,), whole_tokens=True, adds_bos=True)
_DIGIT_RULES = PreTokenizer(_DIGITS)

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
    "smollm": _DIGIT_RULES,
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
"""`tokenizer.ggml.pre` by name. The expressions are those of the models' own tokenizer.json, as llama.cpp's
src/llama-vocab.cpp lists them."""


def pre_tokenizer(name: str) -> PreTokenizer:
    """The rules of a `tokenizer.ggml.pre`.

    Raises:
        TokenizerError: the name is unknown. Another rule would silently give other ids.
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
    """A byte-level BPE tokenizer.

    Args:
        vocab: token, in the alphabet of `byte_alphabet`, to id; added tokens among them as they are.
        merges: pairs, the first to merge first.
        added: tokens cut out of the text beforehand.

    Raises:
        TokenizerError: a merge names a token that is not in the vocabulary.
    """
    try:
        engine = BPE(vocab, merges, ignore_merges=rules.whole_tokens)
    except Exception as exc:  # tokenizers raises nothing narrower
        raise TokenizerError(f"the vocabulary and its merges do not fit together: {exc}") from exc
    tokenizer = Tokenizer(engine)
    tokenizer.pre_tokenizer = cutter(rules)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in added if token.special])
    tokenizer.add_tokens([token for token in added if not token.special])
    return tokenizer


def cutter(rules: PreTokenizer) -> Any:
    """The rules as a pre-tokenizer of `tokenizers`."""
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
"""Texts on which rules for cutting differ: digits, capitals, contractions, spaces, lines, scripts, punctuation."""

_PREFERRED = ("llama-bpe", "smollm", "gpt-2", "qwen2", "tekken")
"""Names to be found before their aliases."""


def name_of(pre_tokenizer: Any, whole_tokens: bool) -> str:
    """The `tokenizer.ggml.pre` whose rules cut texts as `pre_tokenizer` does.

    Args:
        pre_tokenizer: of a pipeline of `tokenizers`.
        whole_tokens: whether the pipeline's model takes a piece that is a token whole (`ignore_merges`).

    Raises:
        TokenizerError: none does. Another name would silently give other ids.
    """
    cuts = [pre_tokenizer.pre_tokenize_str(text) for text in _PROBES] if pre_tokenizer is not None else None
    for name in (*_PREFERRED, *PRE_TOKENIZERS):
        rules = PRE_TOKENIZERS[name]
        own = cutter(rules)
        if rules.whole_tokens == whole_tokens and cuts == [own.pre_tokenize_str(text) for text in _PROBES]:
            return name
    raise TokenizerError(
        "the tokenizer cuts texts as no pre-tokenizer that puna can name in a GGUF file does "
        f"({', '.join(sorted(PRE_TOKENIZERS))}); llama.cpp would give other ids"
    )


def spell(data: bytes) -> str:
    """Bytes as the characters that stand for them in a byte-level vocabulary."""
    return data.decode("latin-1").translate(BYTE_TO_CHARACTER)
