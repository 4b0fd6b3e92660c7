"""Generated answers follow their schema, expression, grammar or choice, or the finish reason says why not."""

from __future__ import annotations

import asyncio
import json
import random
import re
from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from puna import LLM
from puna.async_llm import AsyncLLM
from puna.backend import PAGE
from puna.engine import Engine, Request, Sampling
from puna.errors import RequestError
from tests.engine.recorder import Recorder, drain
from tests.golden.files import LAYOUTS
from tests.grammars.random_rules import random_choices, random_expression, random_schema
from tests.grammars.schemas import SCHEMAS
from tests.helpers.torch_files import BACKENDS

pytest.importorskip("llguidance")
from puna.engine.grammar import Grammar, token_bits
from puna.grammars.compile import AnswerRule
from puna.grammars.library import make_matcher, make_tokenizer
from puna.grammars.rules import read_rule

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=[*LAYOUTS, "byte level"])
def llm(request: pytest.FixtureRequest) -> LLM:
    layout = request.param
    return LLM(request.getfixturevalue("tiny_model") if layout == "byte level" else LAYOUTS[layout])


def check(options: dict, text: str, reason: str) -> None:
    """Checks a text with an independent implementation."""
    if reason == "length":
        return
    assert reason == "stop", text
    if "json_schema" in options:
        jsonschema.Draft202012Validator(options["json_schema"]).validate(json.loads(text))
        assert not re.search(r"\s", re.sub(r'"(\\.|[^"\\])*"', "", text)), "spaces between tokens"
    elif "regex" in options:
        assert re.fullmatch(options["regex"], text)
    else:
        assert text in options["choice"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["json_schema", "regex", "choice"])
def test_random_answers_at_high_temperatures_follow_random_rules(llm, kind):
    rng = random.Random(kind)
    reasons = []
    make = {"json_schema": random_schema, "regex": random_expression, "choice": random_choices}[kind]
    for seed in range(25):
        options = {kind: make(rng)}
        settings = {"temperature": rng.choice([0.0, 1.0, 5.0, 30.0]), "seed": seed, "speculate": seed % 3 == 0}
        completions = llm.generate(["the llama", "Q: "], max_tokens=rng.choice([10, 60, 120]), **options, **settings)
        for completion in completions:
            check(options, completion.text, completion.finish_reason)
            reasons.append(completion.finish_reason)
    assert reasons.count("stop") > 25


def test_a_chat_answer_begins_without_a_space(llm):
    if llm.tokenizer.chat_template is None:
        llm.tokenizer.chat_template = "{{ messages[0].content }}"
    for seed in range(5):
        completion = llm.chat("Hi", choice=["yes", "no", "maybe"], temperature=5.0, seed=seed)
        assert completion.text in ("yes", "no", "maybe") and completion.finish_reason == "stop"
        assert llm.generate("", choice=["yes", "no"], temperature=5.0, seed=seed).text in ("yes", "no")


@pytest.mark.parametrize("name", ["any object", "tuple", "nested", "anyOf"])
def test_streamed_text_is_that_of_the_completion(llm, name):
    options = {"json_schema": SCHEMAS[name][0], "temperature": 2.0, "seed": 4, "max_tokens": 60}
    completion = llm.generate("the llama", **options)
    assert "".join(llm.stream("the llama", **options)) == completion.text
    assert completion.finish_reason in ("stop", "length")


@pytest.fixture(scope="module", params=BACKENDS)
def tiny(request: pytest.FixtureRequest, tiny_model) -> LLM:
    return LLM(tiny_model, request.param)


def test_an_answer_is_the_same_with_speculation_in_a_batch_and_alone(tiny):
    options = [
        {"json_schema": PERSON, "temperature": 1.5, "seed": 1, "max_tokens": 60},
        {"regex": "(the llama ){2,9}", "speculate": True, "max_tokens": 60, "logprobs": 2},
        {"choice": ["high", "higher", "highland"], "temperature": 3.0, "seed": 2},
        {"grammar": 'start: "a" start "b" | "c"', "temperature": 1.0, "seed": 3, "max_tokens": 40},
        {"temperature": 1.0, "seed": 3, "max_tokens": 40},
    ]
    alone = [tiny.generate("the llama", **item) for item in options]

    async def together() -> list:
        async with AsyncLLM(tiny.path, tiny.backend) as llm:
            return await asyncio.gather(*(llm.generate("the llama", **item) for item in options * 3))

    for number, completion in enumerate(asyncio.run(together())):
        expected = alone[number % len(options)]
        assert (completion.ids, completion.finish_reason) == (expected.ids, expected.finish_reason)
        if tiny.backend == "native":
            assert completion.logprobs == expected.logprobs
    for item, completion in zip(options, alone, strict=True):
        assert tiny.generate("the llama", **{**item, "speculate": not item.get("speculate")}).ids == completion.ids


def test_several_answers_to_one_prompt_follow_the_rule(tiny):
    completion = tiny.generate("the llama", choice=["a", "b", "llama"], temperature=9.0, seed=5, n=8)
    texts = {item.text for item in (completion, *completion.alternatives)}
    assert len(completion.alternatives) == 7
    assert texts <= {"a", "b", "llama"} and len(texts) > 1


def test_an_answer_ends_with_its_grammar_even_without_an_end_token(tiny):
    for options in ({}, {"ignore_eos": True}, {"min_tokens": 1}, {"max_tokens": 256 - 10}):
        completion = tiny.generate("the llama", regex="x{3}", **options)
        assert (completion.text, completion.finish_reason) == ("xxx", "stop")
    assert tiny.generate("the llama", regex="x{3}", max_tokens=3).finish_reason == "stop"
    assert tiny.generate("the llama", regex="x{3}", max_tokens=2).finish_reason == "length"


def test_an_end_token_is_chosen_only_where_the_grammar_may_end(tiny):
    end = tiny.config.eos_token_id
    likely = {"logit_bias": {end: 100.0}, "max_tokens": 50}
    assert tiny.generate("the", **likely).text == ""
    assert tiny.generate("the", regex="x{2,9}", **likely).text == "xx"
    assert tiny.generate("the", regex="x{2,9}", min_tokens=5, **likely).text == "xxxxx"
    assert tiny.generate("the", regex="x{2,9}", ignore_eos=True, **likely).text == "x" * 9
    (x,) = tiny.tokenizer.encode("x", add_special_tokens=False)
    stopped = tiny.generate("the", regex="[xy]{2}x?", stop_token_ids=[x], ignore_eos=True)
    assert (stopped.text, stopped.finish_reason) == ("yy", "stop")


def test_min_tokens_beyond_the_grammar_is_an_error(tiny):
    with pytest.raises(RequestError, match=r"to end before it has min_tokens \(4\)"):
        tiny.generate("the", regex="x{3}", min_tokens=4)


def test_having_no_token_that_continues_the_grammar_is_an_error(tiny):
    x, y = (tiny.tokenizer.encode(text, add_special_tokens=False)[0] for text in "xy")
    assert tiny.generate("the", regex="x+y", allowed_token_ids=[x, y], max_tokens=40, logit_bias={y: 50}).text == "xy"
    with pytest.raises(RequestError, match="no token can continue the answer in its grammar"):
        tiny.generate("the", regex="xy", allowed_token_ids=[x])


def test_a_stop_string_inside_a_document_makes_the_answer_invalid(tiny):
    completion = tiny.generate("the", json_schema=PERSON, stop='"age', max_tokens=60)
    assert completion.finish_reason == "invalid" and not completion.text.endswith("}")
    completion = tiny.generate("the", regex="[xy]*z", stop="z")
    assert completion.finish_reason in ("invalid", "length")
    completion = tiny.generate("the", regex="x{5}", stop="xxx")
    assert (completion.text, completion.finish_reason) == ("", "invalid")
    completion = tiny.generate("the", regex="x*y", stop="never")
    assert completion.finish_reason in ("stop", "length")
    with pytest.raises(RequestError, match="stop strings cannot be combined"):
        tiny.generate("the", grammar='start: "a" <|user|>', stop="b")


def test_an_answer_in_an_ambiguous_grammar_is_not_parsed_again(tiny, monkeypatch):
    """Parsing takes minutes for a long answer, and would delay all other requests."""
    checked = []
    monkeypatch.setattr(AnswerRule, "matches", lambda self, text: checked.append(text) or True)
    grammar = 'start: e\ne: e e | "x" | "y"'
    letter, end = tiny.tokenizer.encode("x", add_special_tokens=False)[0], tiny.tokenizer.eos_token_id
    options = {"max_tokens": 20, "min_tokens": 5, "logit_bias": {letter: 50, end: 45}, "grammar": grammar}
    assert not tiny.generate("the", **options, temperature=0).text.strip("xy")
    assert tiny.generate("the", **{**options, "logit_bias": {end: 50}}, temperature=0).finish_reason == "stop"
    assert checked == []
    assert tiny.generate("the", **{**options, "logit_bias": {end: 50}}, temperature=0, stop="xyxyxyxy").text
    assert len(checked) == 1


def test_an_object_that_repeats_a_key_is_invalid(tiny):
    grammar = {"json_schema": {"type": "object", "additionalProperties": {"const": 1}}}
    rule = tiny._compiler.compile(read_rule(grammar))
    assert rule.matches('{"a":1,"b":1}') and not rule.matches('{"a":1,"a":1}')


def test_an_invalid_rule_is_refused_before_generation(tiny):
    with pytest.raises(RequestError, match="uniqueItems"):
        tiny.stream("the", json_schema={"type": "array", "uniqueItems": True})
    with pytest.raises(RequestError, match="regex and choice are given"):
        tiny.generate("the", regex="a", choice=["b"])


def recorder_grammar(expression: str) -> Grammar:
    """Returns a grammar for the fake backend, whose tokens are the letters from a on; the last five have no text."""
    tokens = [bytes([97 + index]) if index < 26 else f"<|{index}|>" for index in range(31)]
    rule = read_rule({"regex": expression})
    assert rule is not None
    matcher, error = make_matcher(rule.grammar, make_tokenizer(tokens))
    assert error is None
    return Grammar(((matcher, None),), 32)


def test_a_preempted_request_continues_in_its_grammar():
    """The answers equal those with enough pages, and a recomputed token advances the grammar only once."""
    requests = [
        Request((number + 1, 2, 3), 150, Sampling(temperature=50.0, seed=number), grammar=recorder_grammar(text))
        for number, text in enumerate(["(abc|de){20,99}", "[a-f]{99}g", "(x[a-z]){70}", "a*b*c*d*e*f*"])
    ]

    def answers(pages: int) -> tuple[list, int]:
        engine = Engine(Recorder(pages, context=4 * PAGE), 4)
        ids = [engine.submit(request) for request in requests]
        events = drain(engine)
        assert not any(event.error for event in events)
        tokens = [[e.token for e in events if e.request_id == i and e.token is not None] for i in ids]
        return tokens, engine.scheduler.preemptions

    expected, none = answers(40)
    result, preemptions = answers(5)
    assert none == 0 and preemptions > 0
    assert result == expected
    for request, tokens in zip(requests, result, strict=True):
        assert tokens and max(tokens) < 26
        assert replace(request).grammar is request.grammar
    assert re.fullmatch("[a-f]{99}g", bytes(97 + token for token in result[1]).decode())


def test_an_error_of_a_grammar_ends_only_its_request():
    """A grammar that exceeds a limit of llguidance while an answer is generated."""

    class Failing:
        """A matcher that fails after three tokens."""

        def __init__(self, matcher, count=0):
            self.matcher, self.count = matcher, count

        def __getattr__(self, name):
            return getattr(self.matcher, name)

        def deep_copy(self):
            return Failing(self.matcher.deep_copy(), self.count)

        def consume_token(self, token):
            self.count += 1
            return self.count < 3 and self.matcher.consume_token(token)

        def is_error(self):
            return self.count >= 3 or self.matcher.is_error()

        def get_error(self):
            return "too many items\n<non-verbose/>" if self.is_error() else ""

    (branch,) = recorder_grammar("[a-z]+").branches
    failing = Grammar(((Failing(branch[0]), None),), 32)
    engine = Engine(Recorder(), 2)
    first = engine.submit(Request((1, 2), 20, grammar=failing, speculate=True))
    second = engine.submit(Request((1, 2), 20))
    events = drain(engine)
    (error,) = [event.error for event in events if event.error is not None]
    assert str(error) == "the answer cannot continue in its grammar: too many items"
    assert sum(event.request_id == first and event.token is not None for event in events) == 3
    assert sum(event.request_id == second and event.token is not None for event in events) == 20


def test_bits_of_tokens():
    assert token_bits(40, [0, 33, 99]).tolist() == [1, 2]
    assert token_bits(3, []).dtype == np.uint32
