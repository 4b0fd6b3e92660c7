"""Random parts of a tokenizer.json, with ordinary and extreme parameters, and random chat templates."""

# ruff: noqa: E501  # tables, one entry a line

from __future__ import annotations

import random
from typing import Any

HUGE = [0, 1, 2, 5, 64, 10**6, 10**12, 2**31, 2**32 - 1, 2**63, 2**64 - 1]
STRINGS = ["", " ", "a", "▁", "é", "x" * 20, "x" * 2000, "\0", "</s>", "ll"]
REGEXES = [
    "",
    "a",
    "(a|b|)*",
    "(x+x+)+y",
    "(?=)",
    r"\G",
    r"\p{L}+|\s",
    "(?:a{1000}){1000}",
    "(" * 200 + ")" * 200,
    "[",
    r"(?<n>a\g<n>)",
    r"(?i:'s|'t)|\p{N}{1,3}",
]
CHARSMAPS = [
    "",
    "AAAA",
    "/////wAAAAAAAAAA",
    "CAAAAAAAAAAAAAAA",
    "BAAAAP////8A",
    "////fwAAAAA=",
    "BAAAAAAAAAAA",
    "*",
    None,
    5,
]
BEHAVIOURS = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous", "x"]


def component(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """Returns a random normalizer, pre-tokenizer, decoder, post-processor or model."""
    text, other = rng.choice(STRINGS), rng.choice(STRINGS)
    number, other_number = rng.choice(HUGE), rng.choice(HUGE)
    flag, other_flag = rng.random() < 0.5, rng.random() < 0.5
    pattern: dict[str, str] = rng.choice([{"String": text}, {"Regex": rng.choice(REGEXES)}])
    piece: Any = rng.choice(
        [{"Sequence": {"id": rng.choice("AB"), "type_id": number}}, {"SpecialToken": {"id": text, "type_id": 0}}]
    )
    pieces = [piece] * rng.choice([0, 1, 2, 100]) + [{"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {text: {"id": text, "ids": [number] * rng.choice([0, 1, 50]), "tokens": [text]}}
    vocab = {text: number, other: other_number, "a": 0, "b": 1, "ab": 2}
    options: list[dict[str, Any]] = [
        {"type": "Precompiled", "precompiled_charsmap": rng.choice(CHARSMAPS)},
        {"type": "Replace", "pattern": pattern, "content": other},
        {"type": "Prepend", "prepend": text},
        {"type": rng.choice(["NFC", "NFKC", "NFD", "NFKD", "Lowercase", "Nmt", "StripAccents", "ByteLevel"])},
        {"type": "Strip", "strip_left": flag, "strip_right": other_flag},
        {"type": "BertNormalizer", "clean_text": flag, "handle_chinese_chars": other_flag, "strip_accents": None, "lowercase": flag},
        {"type": "FixedLength", "length": number},
        {"type": "Split", "pattern": pattern, "behavior": rng.choice(BEHAVIOURS), "invert": flag},
        {"type": "ByteLevel", "add_prefix_space": flag, "trim_offsets": other_flag, "use_regex": flag},
        {"type": "Metaspace", "replacement": text, "prepend_scheme": rng.choice(["always", "never", "first", "x"]), "split": flag},
        {"type": "Digits", "individual_digits": flag},
        {"type": "Punctuation", "behavior": rng.choice(BEHAVIOURS)},
        {"type": "CharDelimiterSplit", "delimiter": text},
        {"type": rng.choice(["Whitespace", "WhitespaceSplit", "UnicodeScripts", "BertPreTokenizer"])},
        {"type": "Strip", "content": rng.choice(["a", " ", text]), "start": number, "stop": other_number},
        {"type": rng.choice(["ByteFallback", "Fuse"])},
        {"type": "WordPiece", "prefix": text, "cleanup": flag},
        {"type": "BPEDecoder", "suffix": text},
        {"type": "CTC", "pad_token": text, "word_delimiter_token": other, "cleanup": flag},
        {"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": tokens},
        {"type": rng.choice(["BertProcessing", "RobertaProcessing"]), "sep": [text, number], "cls": [other, other_number], "trim_offsets": flag, "add_prefix_space": other_flag},
        {"type": "BPE", "vocab": vocab, "merges": rng.choice([["a b"], [["a", "b"]], [f"{text} {other}"], ["a"], []]), "unk_token": rng.choice([None, text, "a"]), "dropout": rng.choice([None, 0.5, 2.0, -1.0]), "continuing_subword_prefix": rng.choice([None, text]), "end_of_word_suffix": rng.choice([None, other]), "byte_fallback": flag, "fuse_unk": other_flag, "ignore_merges": flag},
        {"type": "Unigram", "unk_id": rng.choice([None, number, 0]), "vocab": [["a", 0.0], [text, rng.choice([-1.0, float("nan"), 1e308])], ["<0x41>", -2.0]], "byte_fallback": flag},
        {"type": "WordPiece", "unk_token": text, "continuing_subword_prefix": other, "max_input_chars_per_word": number, "vocab": vocab},
        {"type": "WordLevel", "vocab": vocab, "unk_token": other},
        {"strategy": rng.choice([{"Fixed": number}, "BatchLongest"]), "direction": "Right", "pad_to_multiple_of": other_number, "pad_id": 0, "pad_type_id": 0, "pad_token": text},
        {"direction": "Right", "max_length": number, "strategy": "LongestFirst", "stride": other_number},
        {"id": number, "content": text, "single_word": flag, "lstrip": other_flag, "rstrip": flag, "normalized": other_flag, "special": flag},
    ]  # fmt: skip
    if depth < 3 and rng.random() < 0.25:
        key = rng.choice(["normalizers", "pretokenizers", "decoders", "processors"])
        return {"type": "Sequence", key: [component(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 5]))]}
    return rng.choice(options)


EXPRESSIONS = [
    "messages", "messages[0].content", "1", "0", "-1", "10 ** 9", "'a'", "'ab' * 1000", "x", "range(99999)", "none", "{}", "[1, 2]",
    "namespace(v=1)", "loop.index", "f(3)", "tools", "bos_token", "dict(a=1)", "cycler('a', 'b')", "joiner(',')", "lipsum(n=5)",
    "strftime_now('%Y')", "raise_exception('no')", "self", "caller()", "messages[-1:]", "'%s' % 1", "1e308", "'\\ud800'", "'é🦙'",
    "''.join", "[].append", "('a',)", "true", "messages | tojson", "undefined_name.a.b", "loop", "varargs", "kwargs",
]  # fmt: skip
FILTERS = [
    "length", "list", "string", "int", "float", "tojson", "join", "first", "last", "sort", "reverse", "unique", "upper", "trim", "sum",
    "batch(3)", "batch(10 ** 9, 0)", "slice(10 ** 8)", "center(10 ** 9)", "indent(10 ** 9)", "replace('a', 'aa' * 1000)", "wordwrap(1)",
    "map(attribute='role')", "selectattr('role')", "groupby('role')", "dictsort", "items", "tojson(indent=10 ** 9)", "format(1)",
    "default('x')", "xmlattr", "urlize", "striptags", "escape", "safe", "random", "round(10 ** 9)", "filesizeformat", "pprint", "attr('__class__')",
]  # fmt: skip
METHODS = [
    "upper()", "strip()", "split()", "encode()", "zfill(10 ** 9)", "format(1)", "join([1])", "items()", "keys()", "copy()", "append(1)",
    "__class__", "__init__.__globals__", "replace('', 'x' * 9999)", "bit_length()", "to_bytes(10 ** 9, 'big')", "expandtabs(10 ** 9)",
    "fromkeys(range(9999))", "translate({97: 'x' * 9999})", "count('a')", "ljust(10 ** 9)", "splitlines()", "casefold()", "format_map({})",
]  # fmt: skip
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "and", "or", "==", "<", "in", "is", ">"]


def expression(rng: random.Random, depth: int = 0) -> str:
    """Returns a random Jinja expression."""
    kind = rng.random()
    if depth > 4 or kind < 0.3:
        return rng.choice(EXPRESSIONS)
    inner = expression(rng, depth + 1)
    if kind < 0.55:
        return f"({inner} | {rng.choice(FILTERS)})"
    if kind < 0.75:
        return f"({inner}).{rng.choice(METHODS)}"
    if kind < 0.95:
        return f"({inner} {rng.choice(OPERATORS)} {expression(rng, depth + 1)})"
    return f"({inner})[{expression(rng, depth + 1)}]"


def template(rng: random.Random, depth: int = 0) -> str:
    """Returns a random chat template; many are invalid, and some need much time or memory."""
    parts = []
    for _ in range(rng.choice([1, 2, 4])):
        kind = rng.randrange(12) if depth < 5 else 0
        value, body = expression(rng), template(rng, depth + 1) if kind > 3 else ""
        parts.append(
            [
                f"{{{{ {value} }}}}",
                f"text {{{{- {value} -}}}} ",
                f"{{% set x = {value} %}}",
                rng.choice(
                    [
                        "{% break %}",
                        "{% continue %}",
                        "{% if %}",
                        "{{",
                        "%}",
                        "{# #}",
                        "{% raw %}{{{% endraw %}",
                        "\x00",
                    ]
                ),
                f"{{% for x in {value} %}}{body}{{% endfor %}}",
                f"{{% for x in {value} recursive %}}{body}{{{{ loop({expression(rng)}) }}}}{{% endfor %}}",
                f"{{% if {value} %}}{body}{{% else %}}{body}{{% endif %}}",
                f"{{% macro f(n) %}}{body}{{{{ f(n - 1) if n }}}}{{% endmacro %}}{{{{ f({value}) }}}}",
                f"{{% set ns = namespace(x={value}) %}}{{% for i in range(40) %}}{{% set ns.x = ns.x ~ ns.x %}}{body}{{% endfor %}}",
                f"{{% generation %}}{body}{{% endgeneration %}}",
                f"{{% filter {rng.choice(FILTERS)} %}}{body}{{% endfilter %}}",
                f"{{% call(y) f({value}) %}}{body}{{% endcall %}}",
            ][kind]
        )
    return "".join(parts)
