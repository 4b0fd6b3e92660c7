"""The learned tokens equal those of transformers' {% generation %} masks and of trl's rule for completions."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from puna.errors import DataError
from puna.tokenizer import load_tokenizer
from puna.training.data.read import DataOptions, read_examples
from tests.golden.files import LAYOUTS

SMOLLM2_MARKED = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}{% generation %}{{ message['content'] + "
    "'<|im_end|>' + '\n' }}{% endgeneration %}{% else %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's template with the marks of the assistant's text."""

PIECES = [
    "Hi",
    " there",
    "\n",
    "\n\n",
    "  ",
    "42",
    "é",
    "世界",
    "🙂",
    ".",
    "<|im_end|>",
    "assistant",
    "{",
    "x = 1;",
    "\t",
]


def conversations(count, seed=0):
    """Yields random conversations; texts begin and end with spaces and line ends, and quote special tokens."""
    draw = np.random.default_rng(seed)
    for _ in range(count):
        turns = [("user", "assistant")[index % 2] for index in range(2 * draw.integers(1, 4))]
        roles = ["system"] * int(draw.integers(2)) + turns + ["user"] * int(draw.integers(2))
        texts = ["".join(draw.choice(PIECES, draw.integers(1, 9))) for _ in roles]
        yield [
            {"role": role, "content": text if text.strip() else text + "a"}
            for role, text in zip(roles, texts, strict=True)
        ]


def examples(rows, tokenizer, **options):
    return list(read_examples(rows, tokenizer, DataOptions(**options))[0])


def learned(example):
    return (example.weights > 0).tolist()


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(LAYOUTS["hf"])


@pytest.fixture(scope="module")
def smollm2_tokenizers(smollm2, tmp_path_factory):
    """SmolLM2's tokenizer of puna and that of transformers."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("tokenizer")
    ours = load_tokenizer(smollm2)
    ours.save_pretrained(path)
    return ours, transformers.AutoTokenizer.from_pretrained(path)


def test_answers_equal_the_marks_of_transformers(smollm2_tokenizers):
    ours, theirs = smollm2_tokenizers
    rows = list(conversations(60))
    results = examples([{"messages": row} for row in rows], ours, max_length=4096)
    for row, example in zip(rows, results, strict=True):
        expected = theirs.apply_chat_template(
            row, chat_template=SMOLLM2_MARKED, return_assistant_tokens_mask=True, return_dict=True
        )
        assert example.ids.tolist() == expected["input_ids"]
        mask = np.array(expected["assistant_masks"], bool)
        # A token with the last character of the header and the first of the answer is learned here only.
        differs = np.flatnonzero(mask != (example.weights > 0))
        text = "".join(message["content"] for message in row)
        assert len(differs) == 0 or all(
            learned(example)[i] and ours.decode(example.ids[[i]])[:1] == "\n" for i in differs
        ), text


def test_a_completion_begins_where_its_ids_leave_those_of_the_prompt(smollm2_tokenizers):
    """The rule of trl's SFTTrainer (1.16): the common prefix of the ids of the prompt and of the complete text."""
    ours, theirs = smollm2_tokenizers
    rows = [row[: -1 if row[-1]["role"] == "user" else None] for row in conversations(30, seed=1)]
    results = examples([{"prompt": row[:-1], "completion": row[-1:]} for row in rows], ours, max_length=4096)
    for row, example in zip(rows, results, strict=True):
        prompt = theirs.apply_chat_template(row[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        complete = theirs.apply_chat_template(row, return_dict=True)["input_ids"]
        shared = next((i for i, (a, b) in enumerate(zip(prompt, complete, strict=False)) if a != b), len(prompt))
        assert example.ids.tolist() == complete
        assert learned(example) == [False] * shared + [True] * (len(complete) - shared)


TRAINING_TEMPLATES = ["llama3", "qwen3", "qwen2_5", "phi3", "gemma", "glm4moe"]


@pytest.mark.parametrize("name", TRAINING_TEMPLATES)
def test_the_marks_in_trls_templates_are_found_without_marks(smollm2_tokenizers, name):
    spec = importlib.util.find_spec("trl")
    path = Path(spec.origin).parent / "chat_templates" / f"{name}_training.jinja" if spec else Path("no trl")
    if not path.is_file():
        pytest.skip(f"trl is not installed, or has no template {name}")
    ours, theirs = map(copy.deepcopy, smollm2_tokenizers)
    tags = sorted(set(re.findall(r"<[|\uff5c]\w+[|\uff5c]>|<(?:start|end)_of_turn>", path.read_text())))
    for tokenizer in (ours, theirs):
        tokenizer.chat_template = path.read_text()
        tokenizer.add_special_tokens({"additional_special_tokens": tags})
    rows = [[message for message in row if message["role"] != "system"] for row in conversations(8, seed=2)]
    rows = [[{**message, "content": message["content"].strip() or "a"} for message in row] for row in rows]
    results = examples([{"messages": row} for row in rows], ours, max_length=4096)
    for row, example in zip(rows, results, strict=True):
        expected = theirs.apply_chat_template(row, return_assistant_tokens_mask=True, return_dict=True)
        assert example.ids.tolist() == expected["input_ids"]
        differs = np.flatnonzero(np.array(expected["assistant_masks"], bool) != (example.weights > 0))
        texts = {ours.decode(example.ids[[i]]) for i in differs}
        assert all(not text.strip() for text in texts), (texts, row)  # line ends next to a header or an end token


def test_the_golden_tokenizer_learns_what_follows_the_prompt(tokenizer):
    """Llama 2's template: "<s>[INST] question [/INST]" and then " answer </s>"."""
    row = [
        {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."},
        {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."},
    ]  # fmt: skip
    (example,) = examples([{"messages": row}], tokenizer)
    parts = ["<s>[INST] Who? [/INST]", " Me. </s>", "<s>[INST] Why? [/INST]", " So. </s>"]
    text = "".join(parts)
    expected = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert example.ids.tolist() == expected["input_ids"]
    bounds = np.cumsum([len(part) for part in parts])
    answers = [bool(np.searchsorted(bounds, end - 1, "right") % 2) for _, end in expected["offset_mapping"]]
    assert learned(example) == answers


def test_weights_of_messages_and_of_prompts(tokenizer):
    row = {
        "messages": [
            {"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0.5},
        ]
    }  # fmt: skip
    plain, weighted = examples([row], tokenizer)[0], examples([row], tokenizer, prompt_loss_weight=0.25)[0]
    assert set(plain.weights.tolist()) == {0, 0.5}
    last = plain.weights > 0
    assert np.array_equal(weighted.weights[last], plain.weights[last])
    assert weighted.weights[0] == 0 and set(weighted.weights[1:].tolist()) == {0, 0.25, 0.5}
    only = {"messages": [*row["messages"][:1], {"role": "assistant", "content": "b"}]}
    first = examples([only], tokenizer)[0]
    assert (weighted.weights[: len(first.ids)] == 0).sum() == 1 + (first.weights > 0).sum(), "the weight of b is 0"


@pytest.mark.parametrize("is_slow", [False, True])
def test_texts_have_bos_and_one_eos(is_slow):
    tokenizer = load_tokenizer(LAYOUTS["meta"] if is_slow else LAYOUTS["hf"])
    assert tokenizer.is_fast is not is_slow
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for text in ("Once upon a time", "Once upon a time</s>"):
        (example,) = examples([{"text": text}], tokenizer)
        assert example.ids.tolist() == [*tokenizer("Once upon a time")["input_ids"], eos]
        assert example.ids[0] == bos and learned(example) == [False] + [True] * (len(example.ids) - 1)
    (example,) = examples([{"prompt": "Once upon", "completion": " a time"}], tokenizer)
    prompt = tokenizer("Once upon")["input_ids"]
    assert example.ids.tolist() == [*tokenizer("Once upon a time")["input_ids"], eos]
    assert learned(example) == [False] * len(prompt) + [True] * (len(example.ids) - len(prompt))


def test_a_token_with_the_end_of_the_prompt_is_learned_and_reported(smollm2):
    tokenizer = load_tokenizer(smollm2)
    data, report = read_examples(
        [{"prompt": "A:", "completion": " x"}, {"prompt": "A: ", "completion": "x"}], tokenizer, DataOptions()
    )
    assert tokenizer.convert_ids_to_tokens(data[1].ids.tolist())[:3] == ["A", ":", "Ġx"]
    assert [learned(example) for example in data] == [[False, False, True, True]] * 2
    assert report.unaligned == 1 and report.first_unaligned == "the data, row 2"
    assert any("end of the prompt" in note for note in report.notes())


def test_an_answer_that_later_messages_change_is_an_error(tokenizer):
    """As Qwen3's template does: thoughts are shown in the last answer only."""
    tokenizer = load_tokenizer(LAYOUTS["hf"])
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]"
        "{{ m.content if loop.last else m.content.split('</think>')[-1] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    turns = [
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>b</think>c"},
        {"role": "user", "content": "d"}, {"role": "assistant", "content": "e"},
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"row 1: the chat template renders the answer in messages\[1\] differently"):
        examples([{"messages": turns}], tokenizer)
    turns[1]["weight"] = 0
    (example,) = examples([{"messages": turns}], tokenizer)
    text = tokenizer.decode(example.ids[example.weights > 0])
    assert text.strip() == "e", "the header of the answer is longer than what the answer begins with"


def test_a_template_that_leaves_something_out_is_an_error(tokenizer):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tool = {"type": "function", "function": {"name": "find_city", "parameters": {}}}
    with pytest.raises(DataError, match="row 1: the chat template leaves out the description of a tool, 'find_city'"):
        examples([{"messages": turns, "tools": [tool]}], tokenizer)
    other = load_tokenizer(LAYOUTS["hf"])
    other.chat_template = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    with pytest.raises(DataError, match=r"leaves out the text of messages\[0\] \(system\)"):
        examples([{"messages": [{"role": "system", "content": "Be brief"}, *turns]}], other)


def test_calls_of_tools_are_learned(tokenizer):
    """OpenAI's arguments are JSON text; templates receive objects, and the result of the call is not learned."""
    other = load_tokenizer(LAYOUTS["hf"])
    other.chat_template = (
        "{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}[{{ m.role }}]"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.items() | list }}){% endfor %}"
        "{{ m.content }}|{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    call = {"id": "1", "type": "function", "function": {"name": "find", "arguments": json.dumps({"city": "Lima"})}}
    turns = [
        {"role": "user", "content": "Where?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "Peru", "tool_call_id": "1"}, {"role": "assistant", "content": "In Peru."},
    ]  # fmt: skip
    tools = [{"type": "function", "function": {"name": "find"}}]
    (example,) = examples([{"messages": turns, "tools": tools}], other)
    assert other.decode(example.ids[example.weights > 0]).replace(" ", "") == "find([('city','Lima')])|InPeru.|"
    old = [turns[0], {"role": "assistant", "function_call": call["function"]}, *turns[2:]]
    shared = [
        {"from": "human", "value": "Where?"},
        {"from": "function_call", "value": json.dumps({"name": "find", "arguments": {"city": "Lima"}})},
        {"from": "observation", "value": "Peru"},
        {"from": "gpt", "value": "In Peru."},
    ]
    others = examples([{"messages": old, "functions": [tools[0]["function"]]}], other)
    others += examples([{"conversations": shared, "tools": json.dumps(tools)}], other)
    for same in others:
        assert np.array_equal(same.ids, example.ids) and np.array_equal(same.weights, example.weights)
