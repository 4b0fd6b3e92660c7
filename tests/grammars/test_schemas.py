"""Small schemas, expressions and grammars, token by token, for three kinds of vocabularies."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import numpy as np
import pytest

from puna.engine.grammar import GrammarState, Masks, token_bits
from puna.errors import RequestError
from puna.grammars.rules import read_rule
from puna.grammars.token_bytes import token_bytes
from puna.tokenizer import LlamaTokenizer, StreamDecoder, load_tokenizer
from tests.golden.files import LAYOUTS, TOKENIZER
from tests.grammars.schemas import REFUSED, SCHEMAS

pytest.importorskip("llguidance")
from puna.grammars.compile import AnswerRule, Compiler
from puna.grammars.vocabulary import Vocabulary

END = 2


@dataclass
class Fixture:
    """A tokenizer, and its vocabulary for llguidance."""

    tokenizer: Any
    vocabulary: Vocabulary
    spellings: list[bytes | None] = field(init=False)

    def __post_init__(self) -> None:
        spellings = token_bytes(self.tokenizer)
        self.spellings = spellings + [None] * (self.vocabulary.size - 1 - len(spellings))

    def rule(self, **options: Any) -> AnswerRule:
        """Returns a compiled rule, without the check of `Compiler`."""
        rule = read_rule(options)
        assert rule is not None
        return AnswerRule(rule, self.vocabulary)

    def spelling(self, data: bytes, rng: random.Random, removes_space: bool) -> list[int] | None:
        """Returns tokens that spell the bytes, chosen at random; None if there are none.

        At the beginning of some texts, the tokenizer removes a space from the first token.
        """
        ids: list[int] = []
        while data:
            start = removes_space and not ids
            choices = [i for i, text in enumerate(self.spellings) if text and data.startswith(text)]
            if start:
                choices = [i for i in choices if self.spellings[i][:1] != b" "]
                spaced = [i for i, text in enumerate(self.spellings) if text and (b" " + data).startswith(text)]
                choices += [i for i in spaced if self.spellings[i][1:].strip()]
            if not choices:
                return None
            ids.append(rng.choice(choices))
            spelled = self.spellings[ids[-1]]
            data = data[len(spelled) - (start and spelled[:1] == b" ") :]
        return ids

    def accepts(self, rule: AnswerRule, text: str, prompt: tuple[int, ...], seed: int = 0) -> bool:
        """Returns whether the masks allow tokens that spell the text, and then an end token, and no special token."""
        ids = self.spelling(text.encode(), random.Random(seed), self.vocabulary.removes_space(prompt))
        if ids is None:
            return False
        state = GrammarState(rule.grammar(prompt), token_bits(self.vocabulary.size - 1, [END]))
        masks = Masks()
        for token in [*ids, END]:
            masks.compute([state])
            bits = np.unpackbits(state.allowed.view(np.uint8), bitorder="little")
            allowed = np.flatnonzero(bits[: self.vocabulary.size - 1])
            assert all(self.spellings[i] or i == END for i in allowed)
            assert (END in allowed) == state.accepts
            if token not in allowed:
                return False
            if token != END:
                state.commit(token)
        if ids:
            decoder = StreamDecoder(self.tokenizer, True, prompt)
            assert "".join(map(decoder.push, ids)) + decoder.finish() == text
        return True


@pytest.fixture(scope="module", params=["byte level", "SentencePiece", "SentencePiece in tokenizers"])
def fixture(request: pytest.FixtureRequest) -> Fixture:
    if request.param == "byte level":
        tokenizer = load_tokenizer(request.getfixturevalue("tiny_model"))
    elif request.param == "SentencePiece":
        tokenizer = LlamaTokenizer(TOKENIZER)
    else:
        tokenizer = load_tokenizer(LAYOUTS["hf"])
    return Fixture(tokenizer, Vocabulary(tokenizer, len(tokenizer) + 7))


def prompts(fixture: Fixture) -> list[tuple[int, ...]]:
    """Returns prompts: none (a chat), only BOS, and a text."""
    encode = fixture.tokenizer.encode
    return [(), tuple(encode("")), tuple(encode("the llama"))]


@pytest.mark.parametrize("name", SCHEMAS)
def test_valid_documents_are_accepted_and_others_are_not(fixture, name):
    schema, valid, invalid = SCHEMAS[name]
    rule = fixture.rule(json_schema=schema)
    for number, text in enumerate(valid):
        assert rule.matches(text), text
        for prompt in prompts(fixture):
            assert fixture.accepts(rule, text, prompt, number), (text, prompt)
    for number, text in enumerate(invalid):
        assert not rule.matches(text), text
        if text:  # a repeated key is found only at the end
            repeats = text.count('"x":') > 1
            assert all(repeats or not fixture.accepts(rule, text, prompt, number) for prompt in prompts(fixture)), text


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_documents_are_valid_under_another_implementation_of_json_schema(name):
    schema, valid, invalid = SCHEMAS[name]
    schema = {"type": "object"} if schema is True else schema
    checker = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(
        schema, format_checker=jsonschema.FormatChecker()
    )
    for text in valid:
        checker.validate(json.loads(text))
    assert not all(_is_valid(checker, text) for text in invalid)


def _is_valid(checker: Any, text: str) -> bool:
    try:
        return bool(checker.is_valid(json.loads(text)))
    except ValueError:
        return False


@pytest.mark.parametrize("part", REFUSED)
def test_the_error_names_an_unsupported_keyword(fixture, part):
    with pytest.raises(RequestError, match=f"(?s)json_schema.*{part}"):
        fixture.rule(json_schema=REFUSED[part])


RULES = [
    ({"regex": r"\d{3}-\d{4}"}, ["555-1234"], ["555-123", "555-12345", "٥٥٥-1234", "x555-1234"]),
    ({"regex": r"(?i)yes|no[!?]*"}, ["YES", "no", "no?!"], ["yes!", "n", ""]),
    ({"regex": r"[^a-z]+"}, ["ABC 日本\n", "\U0001f999"], ["a", "Aa"]),
    ({"regex": r"a/b\\c\"d"}, ['a/b\\c"d'], ["a/b"]),
    ({"regex": "é+\u2028?"}, ["éé", "é\u2028"], ["e", "é\u2029"]),
    ({"choice": ["yes", "no", "yes, sir"]}, ["yes", "yes, sir", "no"], ["ye", "yes,", "yesno", ""]),
    ({"choice": ["a.c", "(x)", "tab\t", "new\nline", 'q"\\/', "日本\U0001f999"]},
     ["a.c", "(x)", "tab\t", "new\nline", 'q"\\/', "日本\U0001f999"], ["abc", "x", "tab ", "日"]),
    ({"grammar": 'start: "(" start ")" | /[a-z]/'}, ["x", "((x))"], ["((x)", "()", "(x))"]),
    ({"grammar": 'start: item ("," item)*\nitem: /[0-9]+/ | %json {"type": "null"}'}, ["1", "1,null,22"],
     ["1,", "nul"]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "valid", "invalid"), RULES)
def test_expressions_choices_and_grammars(fixture, options, valid, invalid):
    rule = fixture.rule(**options)
    for text in valid:
        assert rule.matches(text)
        assert all(fixture.accepts(rule, text, prompt) for prompt in prompts(fixture)), text
    for text in invalid:
        assert not rule.matches(text)
        assert not any(fixture.accepts(rule, text, prompt) for prompt in prompts(fixture)), text


def test_leading_spaces_are_those_of_the_text(fixture):
    prompt = prompts(fixture)[2]
    rule = fixture.rule(regex=" {0,2}x")
    assert all(fixture.accepts(rule, text, prompt) for text in ("x", " x", "  x"))
    assert not fixture.accepts(rule, "   x", prompt)
    assert fixture.accepts(rule, "x", ())
    required = fixture.rule(regex=" x")
    assert fixture.accepts(required, " x", prompt) and not fixture.accepts(required, "x", prompt)


def test_a_grammar_may_contain_special_tokens_that_the_text_hides(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    fixture = Fixture(tokenizer, Vocabulary(tokenizer, len(tokenizer)))
    rule = fixture.rule(grammar='start: "a" <|user|> "b"')
    assert not rule.checks_text
    state = GrammarState(rule.grammar(()), token_bits(len(tokenizer), [END]))
    masks = Masks()
    for token in (*tokenizer.encode("a"), *tokenizer.convert_tokens_to_ids(["<|user|>", "b"])):
        masks.compute([state])
        allowed = np.unpackbits(state.allowed.view(np.uint8), bitorder="little")
        assert allowed.sum() == allowed[token] == 1
        state.commit(token)
    assert state.complete
    with pytest.raises(RequestError, match="special token"):
        fixture.rule(grammar='start: <|missing|> "b"')


def test_masks_of_several_states_are_computed_together(fixture):
    rules = [fixture.rule(regex=text) for text in ("a+", "b|c", "[0-9]")]
    grammars = [rule.grammar(prompt) for rule in rules for prompt in prompts(fixture)]
    end = token_bits(fixture.vocabulary.size - 1, [END])
    together, alone = ([GrammarState(grammar, end) for grammar in grammars] for _ in range(2))
    Masks().compute(together)
    masks = Masks()
    for state, other in zip(alone, together, strict=True):
        masks.compute([state])
        np.testing.assert_array_equal(state.allowed, other.allowed)
    assert len({state.allowed.tobytes() for state in alone}) >= 3


def test_compiled_rules_are_kept_and_the_oldest_are_dropped(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    compiler = Compiler(tokenizer, len(tokenizer))
    first, second = (read_rule({"regex": text}) for text in "ab")
    compiled = compiler.compile(first)
    assert compiler.compile(second) is not compiled
    assert compiler.compile(first) is compiled
