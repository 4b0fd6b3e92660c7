"""The conversations that `LLM.chat` accepts, and the errors for other arguments."""

from __future__ import annotations

import pytest

from puna import LLM
from puna.errors import ChatTemplateError, RequestError
from puna.prompts import read_conversations

HELLO = {"role": "user", "content": "hello"}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
TOOL_TEMPLATE = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def llm(tiny_model):
    return LLM(tiny_model)


def prompt_text(llm, completion):
    """Returns the text of a completion's prompt."""
    return llm.tokenizer.decode(list(completion.prompt_ids))


def test_a_text_is_a_user_message(llm):
    answer = llm.chat("hello", max_tokens=9)
    assert answer.prompt_ids == llm.chat([HELLO], max_tokens=9).prompt_ids
    assert answer.text == llm.chat([HELLO], max_tokens=9).text


@pytest.mark.parametrize("sequence", [list, tuple])
def test_a_list_of_conversations_returns_a_list(llm, sequence):
    system = {"role": "system", "content": "be brief"}
    answers = llm.chat(sequence([sequence([HELLO]), sequence([system, HELLO])]), max_tokens=9)
    assert [answer.ids for answer in answers] == [
        llm.chat([HELLO], max_tokens=9).ids,
        llm.chat([system, HELLO], max_tokens=9).ids,
    ]
    assert len(llm.chat([[HELLO]], max_tokens=1)) == 1


def test_text_parts_become_one_text(llm):
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    answer = llm.chat([{"role": "user", "content": parts}], max_tokens=1)
    assert answer.prompt_ids == llm.chat("one\ntwo", max_tokens=1).prompt_ids
    assert (
        "".join(llm.stream([{"role": "user", "content": parts[:1]}], max_tokens=5))
        == llm.chat("one", max_tokens=5).text
    )


def test_fields_of_tool_calls_are_kept():
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}
    result = {"role": "tool", "content": "12", "tool_call_id": 1}
    assert read_conversations([HELLO, call, result]) == ([[HELLO, call, result]], False)


def test_tools_are_passed_to_the_template(tiny_model):
    llm = LLM(tiny_model)
    llm.tokenizer.chat_template = TOOL_TEMPLATE
    answer = llm.chat([HELLO], tools=[TOOL], max_tokens=1)
    assert '"name": "weather"' in prompt_text(llm, answer)
    unfinished, _ = llm.start([HELLO], tools=[TOOL], max_tokens=1)
    assert unfinished.request.prompt_ids == answer.prompt_ids
    assert prompt_text(llm, llm.chat([HELLO], tools=[], max_tokens=1)) == "hello"


def test_tools_that_would_be_ignored_are_an_error(llm):
    with pytest.raises(ChatTemplateError, match="the model's chat template ignores them"):
        llm.chat([HELLO], tools=[TOOL])
    with pytest.raises(RequestError, match="the prompt is not a conversation"):
        llm.stream("hello", tools=[TOOL])
    with pytest.raises(RequestError, match=r"tools\[1\] is <built-in function print>; describe the tool"):
        llm.chat([HELLO], tools=[TOOL, print])
    with pytest.raises(RequestError, match=r"tools is {'a': 1}; it must be a list"):
        llm.chat([HELLO], tools={"a": 1})


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        (3, r"messages is 3; it must be a text, or a list"),
        (HELLO, r"messages is {'role': 'user'"),
        ([], r"messages is empty"),
        ([[HELLO], []], r"messages\[1\] is empty"),
        (["hello"], r"messages\[0\] is 'hello'; it must be a message"),
        ([HELLO, [HELLO]], r"messages\[0\] is {.*}; it must be a list of messages"),
        ([[HELLO], HELLO], r"messages\[1\] is {.*}; it must be a list of messages"),
        ([[HELLO], [HELLO, None]], r"messages\[1\]\[1\] is None"),
        ([{"content": "x"}], r"messages\[0\]\['role'\] is None"),
        ([HELLO, {"role": "user"}], r"messages\[1\]\['content'\] is None"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\['content'\] is 3"),
        ([{"role": "user", "content": []}], r"messages\[0\]\['content'\] is \[\]"),
        ([{"role": "user", "content": ["x"]}], r"messages\[0\]\['content'\]\[0\] is 'x'"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}],
            r"messages\[0\]\['content'\]\[1\] is of type 'image_url'; the model reads only parts of type 'text'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"\[0\] is {'type': 'text'}; it must be"),
    ],
)
def test_errors_name_the_position(llm, messages, words):
    with pytest.raises(RequestError, match=words):
        llm.chat(messages)
