"""Chat templates: the same text as transformers, no second BOS, and clear errors."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from puna import LlamaTokenizer, LlamaTokenizerFast, load_tokenizer
from puna.errors import ChatTemplateError, TokenizerError
from puna.processes import pool
from puna.templates import process
from puna.tokenizer.chat import render_chat
from puna.tokenizer.chat.templates import DEFAULT_SYSTEM_PROMPT, LLAMA_3

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " Hello "},
    {"role": "assistant", "content": "Hi <b>&</b>"},
    {"role": "user", "content": "Bye\n"},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Wetter & Zeit: <é>"}}]
TEMPLATES = {
    "trimmed": "{% for m in messages %}\n  {% if m.role == 'user' %}\n  {{ m.role }}\n  {% endif %}\n{% endfor %}",
    "json keeps its characters": "{{ tools | tojson }}|{{ tools[0] | tojson(indent=2) }}|{{ documents | tojson }}",
    "skip": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
    "loop": "{% for m in messages %}{{ loop.index }}{{ loop.length }}{{ loop.last }}{{ loop.previtem }}{% endfor %}",
    "namespaces": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "macros": "{% macro turn(m) %}{% for c in m.content %}{{ c }}.{% endfor %}{% endmacro %}{{ turn(messages[0]) }}",
    "nested, filtered": "{% for m in messages if m.role == 'user' %}{% for k, v in m.items() %}{{ k }}={{ v | trim }};"
    "{% endfor %}{% else %}none{% endfor %}",
    "recursive": "{% for n in tree recursive %}{{ n.v }}{% if n.c %}({{ loop(n.c) }}){% endif %}{% endfor %}",
    "special": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}{% if add_generation_prompt %}>{% endif %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "dates": "{{ strftime_now('%Y') }}{{ 'a' * 3 }}{{ 2 ** 5 }}{{ 'x' ~ 1 }}",
    "tools": "{% macro kind(t) %}{{ t.type }}{% if t.items is mapping %}[{{ kind(t['items']) }}]{% endif %}"
    "{% endmacro %}"
    "{% set ns = namespace(first=true, text='') %}{% if tools is defined and tools %}{% for tool in tools %}"
    "{% set f = tool.function if tool.function is defined else tool %}{{ '\n\n' if not ns.first }}"
    "{% set ns.first = false %}"
    "{{ f.name | upper }}{{ f | tojson(indent=4) }}{{ kind({'type': 'list'}) }}{% endfor %}{% endif %}"
    "{% for m in messages %}{% set ns.text = ns.text ~ '<|' ~ m['role'] ~ '|>' ~ m.content.strip() %}{% else %}"
    "{{ raise_exception('no messages') }}{% endfor %}{{ ns.text }}{{ messages | selectattr('role', 'equalto', 'user') "
    "| map(attribute='content') | join(',') }}{{ messages[-1:] | length }}{{ 'a,b'.split(',') | first }}",
    "undefined": "{{ nothing }}{% for x in nothing %}x{% endfor %}{{ nothing is defined }}",
}
VARIABLES = {"tree": [{"v": 1, "c": [{"v": 2, "c": []}, {"v": 3, "c": [{"v": 4, "c": []}]}]}]}


@pytest.fixture(scope="module")
def fast(byte_level_json):
    return load_tokenizer(byte_level_json)


@pytest.fixture(scope="module")
def reference(byte_level_json):
    return pytest.importorskip("transformers").PreTrainedTokenizerFast.from_pretrained(byte_level_json)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("prompt", [False, True])
def test_templates_render_as_in_transformers(fast, reference, name, prompt):
    options = {
        "chat_template": TEMPLATES[name],
        "add_generation_prompt": prompt,
        "tools": TOOLS,
        "documents": [{"t": "é"}],
    }
    expected = reference.apply_chat_template(CHAT, tokenize=False, **options, **VARIABLES)
    assert fast.apply_chat_template(CHAT, tokenize=False, **options, template_variables=VARIABLES) == expected
    ids = reference.apply_chat_template(CHAT, return_dict=False, **options, **VARIABLES)
    assert fast.apply_chat_template(CHAT, **options, template_variables=VARIABLES) == ids


@pytest.mark.parametrize("content", ["Hi", "Hi ", [{"type": "text", "text": "Hi"}]])
@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.content if m.content is string else m.content[0].text }}{%endfor%}",
        "{% for m in messages %}{{ (m.content if m.content is string else m.content[0].text) | trim }}</>{% endfor %}",
    ],
)
def test_the_final_message_is_continued_as_in_transformers(fast, reference, template, content):
    chat = [CHAT[1], {"role": "assistant", "content": content}]
    options = {"chat_template": template, "continue_final_message": True, "tokenize": False}
    text = fast.apply_chat_template(chat, **options)
    assert text == reference.apply_chat_template(chat, **options)
    assert text.rstrip().endswith("Hi") and chat[1]["content"] == content


def test_llama_3_is_detected_by_its_header_tokens(fast):
    assert fast.default_chat_template == LLAMA_3
    text = fast.apply_chat_template(CHAT[:2], add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    ids = fast.apply_chat_template(CHAT[:2], add_generation_prompt=True)
    assert ids == fast.encode(text, add_special_tokens=False) and ids.count(fast.bos_token_id) == 1


@pytest.mark.parametrize("cls", [LlamaTokenizer, LlamaTokenizerFast])
def test_only_the_transformers_classes_add_the_default_system_prompt(sp_model, cls):
    chat = [{"role": "user", "content": "Hello"}]
    tokenizer = cls(sp_model)
    assert DEFAULT_SYSTEM_PROMPT in tokenizer.apply_chat_template(chat, tokenize=False)
    tokenizer.use_default_system_prompt = False
    assert tokenizer.apply_chat_template(chat, tokenize=False) == "<s>[INST] Hello [/INST]"
    assert load_tokenizer(sp_model).apply_chat_template(chat, tokenize=False) == "<s>[INST] Hello [/INST]"
    ids = load_tokenizer(sp_model, add_bos_token=True).apply_chat_template(chat)
    assert ids[0] == 1 and ids.count(1) == 1


def test_roles_must_alternate(sp_model):
    with pytest.raises(ChatTemplateError, match="Conversation roles must alternate user/assistant"):
        LlamaTokenizer(sp_model).apply_chat_template([CHAT[1], CHAT[1]])


def test_the_requested_type_is_returned(fast):
    ids = fast.apply_chat_template(CHAT)
    assert fast.apply_chat_template(CHAT, return_tensors="np").tolist() == [ids]
    assert fast.apply_chat_template(CHAT, return_dict=True)["attention_mask"] == [1] * len(ids)
    assert fast.apply_chat_template([CHAT, CHAT[:2]])[0] == ids
    assert fast.apply_chat_template(CHAT, truncation=True, max_length=5) == ids[:5]
    assert (
        fast.apply_chat_template(CHAT, chat_template="{{ extra }}", template_variables={"extra": "x"}, tokenize=False)
        == "x"
    )


def test_a_template_is_chosen_by_name(byte_level_json):
    tokenizer = load_tokenizer(byte_level_json, chat_template={"default": "D", "tool_use": "T", "rag": "R"})
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == "D"
    assert tokenizer.apply_chat_template(CHAT, tokenize=False, tools=TOOLS) == "T"
    assert tokenizer.apply_chat_template(CHAT, "rag", tokenize=False) == "R"
    assert tokenizer.apply_chat_template(CHAT, "{{ 1 }}", tokenize=False) == "1"
    with pytest.raises(ChatTemplateError, match="rag, tool_use"):
        load_tokenizer(byte_level_json, chat_template={"tool_use": "T", "rag": "R"}).apply_chat_template(CHAT)


@pytest.mark.parametrize("templates", [None, "plain text", {"default": "D", "tool_use": "T"}])
def test_an_unknown_template_name_is_refused(byte_level_json, templates):
    tokenizer = load_tokenizer(byte_level_json, chat_template=templates)
    with pytest.raises(ChatTemplateError, match=r"'tool-use'.*(default, tool_use|it has none)"):
        tokenizer.apply_chat_template(CHAT, "tool-use")


def test_template_variables_may_be_keywords(fast):
    options = {"chat_template": "{{ enable_thinking }}{{ bos_token }}{{ x }}", "tokenize": False}
    text = fast.apply_chat_template(CHAT, **options, enable_thinking=True, bos_token="B", template_variables={"x": 1})
    assert text == "TrueB1"


@pytest.mark.parametrize("name", ["messages", "return_assistant_tokens_mask", "tokenizer_kwargs"])
def test_reserved_template_variables_are_refused(fast, name):
    with pytest.raises(ChatTemplateError, match=f"'{name}'.*reserved"):
        fast.apply_chat_template(CHAT, chat_template="{{ messages | length }}", template_variables={name: []})
    with pytest.raises(ChatTemplateError, match="'add_generation_prompt'"):
        fast.apply_chat_template(CHAT, template_variables={"add_generation_prompt": True})


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "Hi"}], 5, {"text": "Hi"}])
def test_built_in_templates_refuse_content_other_than_text(fast, sp_model, content):
    for tokenizer in (fast, load_tokenizer(sp_model), LlamaTokenizer(sp_model)):
        for chat in ([{"role": "user", "content": content}], [*CHAT[:2], {"role": "assistant", "content": content}]):
            with pytest.raises(ChatTemplateError, match="'content', a string"):
                tokenizer.apply_chat_template(chat)
    assert fast.apply_chat_template([{"role": "user", "content": ""}])


def test_llama_2_refuses_a_lone_system_message(sp_model):
    with pytest.raises(ChatTemplateError, match="first user message"):
        load_tokenizer(sp_model).apply_chat_template(CHAT[:1])


def test_a_tokenizer_without_a_template_refuses_chats(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ChatTemplateError, match="no chat template"):
        load_tokenizer(tmp_path).apply_chat_template(CHAT)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% if %}", "does not compile"),
        ("{{ raise_exception('not today') }}", "not today"),
        ("{{ messages[0].content.missing.deeper }}", "refuses"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages + 1 }}", "TypeError"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
        ("{% for i in range(10000000) %}{% endfor %}", "OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ lookup('x') }}", "refuses"),
        ("{% include 'x' %}", "failed|refuses"),
        ("{{ messages[0].content | nofilter }}", "does not compile"),
        ("{{ strftime_now(3) }}", "TypeError"),
        ("{{ tools | tojson }}{{ raise_exception | tojson }}", "TypeError"),
    ],
)
def test_a_template_that_fails_raises_an_error(fast, template, message):
    with pytest.raises(ChatTemplateError, match=message):
        fast.apply_chat_template(CHAT, chat_template=template)


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in [1] %}" * 30 + "x" + "{% endfor %}" * 30,
        "{% break %}",
        "{% if 1 %}" * 150 + "{% endif %}" * 150,
        "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    ],
)
def test_a_template_that_python_cannot_compile_raises_an_error(fast, template):
    with pytest.raises(ChatTemplateError, match="does not compile"):
        fast.apply_chat_template(CHAT, chat_template=template)


@pytest.fixture
def quick_limit(monkeypatch):
    """The processes that render templates have 0.3 s instead of 1.5 s."""
    change = "\nfrom puna.templates import worker; worker.SECONDS = 0.3\nserve()"
    monkeypatch.setattr(pool, "_PROGRAM", pool._PROGRAM.replace("\nserve()", change))
    monkeypatch.setattr(process, "POOL", pool.WorkerPool("puna.templates.worker"))
    yield
    process.POOL.close()


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in [1,2] recursive %}{% if loop.depth < 60 %}{{ loop([1,2]) }}{% endif %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set d = {}.fromkeys(range(100000)) %}{% for i in d %}{% for j in d %}{% endfor %}{% endfor %}",
        "{{ 10 ** (10 ** 10) }}",
        "{{ [1] | slice(10 ** 10) | list | length }}",
        "{% set n = 10 ** 8 %}{{ (7 ** n) % 3 }}",
        "{% set ns = namespace(s='f') %}{% set x = (ns.s * 10 ** 6) | int(base=16) %}"
        "{{ (x // ((ns.s * 500000) | int(base=16))) % 5 }}",
        "{{ ('a' * 5000000).count('a' * 2000000 + 'b') }}{{ lipsum(n=10**7) | length }}",
    ],
)
def test_templates_that_need_too_much_time_are_stopped(fast, quick_limit, template):
    with pytest.raises(ChatTemplateError, match=r"more than 1\.5 s|more than 64.0 MB"):
        fast.apply_chat_template(CHAT, chat_template=template)


def test_the_default_time_limit_stops_a_template(fast):
    with pytest.raises(ChatTemplateError, match=r"more than 1\.5 s"):
        fast.apply_chat_template(CHAT, chat_template="{{ 10 ** (10 ** 10) }}")


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 12 }}",
        "{{ [1] * 999999999 }}",
        "{{ ('a'.encode() * (10 ** 10)) | length }}",
        "{{ [1] | batch(10 ** 10, 0) | list | length }}",
        "{{ [1] | tojson(indent=10 ** 10) }}",
        "{{ (1).to_bytes(3 * 10 ** 9, 'big') | length }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '%0*d' % (999999999, 1) }}",
        "{{ '%0999999999d' | format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
        "{{ '{0:{1}}'.format(1, '9999999999') }}",
        "{{ ('{:>9999999999}' | safe).format(1) }}",
        "{{ '{v:{w}}'.format_map({'v': 1, 'w': 999999999}) }}",
        "{{ 'a'.center(999999999) }}",
        "{{ ('a' | safe).center(10 ** 10) | length }}",
        "{{ 'a'.encode().zfill(10 ** 10) | length }}",
        "{{ 'a' | indent(width=999999999, first=true) }}",
        "{% set x = 'a' * 30000000 %}{{ x }}{{ x }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    ],
)
def test_templates_that_need_too_much_memory_are_stopped(fast, template):
    with pytest.raises(ChatTemplateError, match=r"more than 64\.0 MB of memory"):
        fast.apply_chat_template(CHAT, chat_template=template)


def test_a_rendering_after_a_failed_one_works(fast):
    for template in (
        "{{ 'a' * 10 ** 12 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    ):
        with pytest.raises(ChatTemplateError):
            fast.apply_chat_template(CHAT, chat_template=template)
        assert fast.apply_chat_template(CHAT, chat_template="{{ messages | length }}", tokenize=False) == "4"


def test_threads_and_forked_processes_render(fast):
    def text(number: int) -> str:
        template = "{% for i in range(20000) %}{% endfor %}{{ messages[0].content }}"
        return render_chat(template, [{"role": "user", "content": str(number)}], variables={})

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(text, range(40))) == [str(number) for number in range(40)]
    assert text(1) == "1"
    child = os.fork()
    if child == 0:
        os._exit(text(2) != "2")
    assert os.waitpid(child, 0)[1] == 0
    assert text(3) == "3"


def test_a_process_that_was_killed_is_replaced():
    assert render_chat("{{ 1 }}", [{"role": "user"}], variables={}) == "1"
    for worker in process.POOL._idle:
        worker._process.kill()
        worker._process.wait()
    assert render_chat("{{ 2 }}", [{"role": "user"}], variables={}) == "2"


def test_an_interrupted_rendering_leaves_no_process(monkeypatch):
    worker = pool.Worker("puna.templates.worker")
    monkeypatch.setattr(process.POOL, "_idle", [worker])

    class InterruptedPipe:
        def read(self, size):
            raise KeyboardInterrupt

        def close(self):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(worker._process, "stdout", InterruptedPipe())
        with pytest.raises(KeyboardInterrupt):
            render_chat("{{ 1 }}", [{"role": "user"}], variables={})
        assert worker._process.poll() is not None
    worker._process.stdout.close()


def test_the_rendering_process_ends_with_its_parent():
    code = (
        "import os; from puna.templates import process; from puna.tokenizer.chat import render_chat; "
        "render_chat('x', [{'role': 'user'}], variables={}); "
        "print(process.POOL._idle[0]._process.pid, flush=True); os._exit(1)"
    )
    run = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while _is_running(int(run.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_arrays_mappings_and_enumerations_are_converted_to_built_in_types(fast):
    class Role(str, Enum):
        USER = "user"

    values = {"a": np.int64(3), "b": np.float32(0.5), "c": MappingProxyType({"k": (1, 2)}), "d": Role.USER, "e": True}
    text = render_chat("{{ [a, b, c, d, e] | tojson }}", [{"role": "user"}], variables=values)
    assert json.loads(text) == [3, 0.5, {"k": [1, 2]}, "user", True]
    with pytest.raises(ChatTemplateError, match=r"date: a value is a date; templates take"):
        render_chat("x", [{"role": "user"}], variables={"date": datetime.date.today()})
    cyclic: list = []
    cyclic.append(cyclic)
    with pytest.raises(ChatTemplateError, match=r"messages: values are nested"):
        render_chat("x", [{"role": "user", "content": cyclic}], variables={})


def test_lone_surrogates_in_messages_are_rendered_unchanged():
    assert render_chat("{{ messages[0].content }}", [{"role": "user", "content": "a\ud800"}], variables={}) == "a\ud800"


def test_formatting_within_the_limits_works(fast):
    template = (
        "{{ '%05d' % 123456789 }}{{ '%s' % 10 ** 9 }}{{ 7 % 3 }}{{ 'a'.center(3) }}{{ '{:>3}'.format(1) }}"
        "{{ '%s' | format(10 ** 9) }}{{ '{}'.format(10 ** 9) }}{{ 'a' | center(3) }}{{ 'x\ny' | indent(2) }}"
        "{{ '20240601%s' % 1 }}"
    )
    text = fast.apply_chat_template(CHAT, chat_template=template, tokenize=False)
    assert text == "12345678910000000001 a   110000000001000000000 a x\n  y202406011"


@pytest.mark.parametrize("chat", [[], "text", [5], [{"content": "no role"}], [{"role": 5, "content": "x"}], None])
def test_invalid_conversations_are_refused(fast, chat):
    with pytest.raises(ChatTemplateError):
        fast.apply_chat_template(chat)


def test_messages_that_cannot_be_continued_are_refused(fast):
    for chat, options in (
        ([{"role": "user"}], {}),
        (CHAT, {"add_generation_prompt": True}),
        (CHAT, {"chat_template": "{{ 'fixed' }}"}),
    ):
        with pytest.raises(ChatTemplateError, match="continue_final_message"):
            fast.apply_chat_template(chat, continue_final_message=True, **options)


def test_message_keys_whose_value_is_none_are_dropped():
    text = render_chat("{{ messages[0] | tojson }}", [{"role": "user", "content": None}], variables={})
    assert json.loads(text) == {"role": "user"}


@pytest.mark.timing
def test_a_template_is_compiled_once(fast):
    template = "{{ messages | length }}" + "{% if messages %}{{ 1 }}{% endif %}" * 300
    costs = []
    fast.apply_chat_template(CHAT)
    for _ in range(3):
        start = time.perf_counter()
        fast.apply_chat_template(CHAT, chat_template=template, tokenize=False)
        costs.append(time.perf_counter() - start)
    assert min(costs[1:]) < costs[0] / 3


@pytest.mark.timing
def test_rendering_takes_less_than_a_millisecond(fast):
    costs = []
    for _ in range(50):
        start = time.perf_counter()
        fast.apply_chat_template(CHAT, chat_template=LLAMA_3, tokenize=False)
        costs.append(time.perf_counter() - start)
    assert sorted(costs)[10] < 1e-3


def test_rendering_imports_jinja_in_its_own_process(byte_level_json):
    code = (
        "import sys; from puna import load_tokenizer; "
        f"t = load_tokenizer({str(byte_level_json)!r}); "
        "t.apply_chat_template([{'role': 'user', 'content': 'x'}]); assert 'jinja2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


MARKED = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</>"
    "{% endgeneration %}{% else %}{{ m.content }}{% endif %}\n{% endfor %}"
)
DIALOGUE = [
    {"role": "user", "content": "the llama"},
    {"role": "assistant", "content": "learns simple tasks"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "widely used"},
]


@pytest.mark.parametrize("tensors", [None, "np"])
@pytest.mark.parametrize("several", [False, True])
def test_the_mask_of_the_assistant_equals_that_of_transformers(fast, reference, several, tensors):
    chat = [DIALOGUE, DIALOGUE[:2]] if several else DIALOGUE
    options = {"chat_template": MARKED, "return_assistant_tokens_mask": True, "return_dict": True}
    options |= {"return_tensors": tensors} if tensors and not several else {}
    result, expected = (tokenizer.apply_chat_template(chat, **options) for tokenizer in (fast, reference))
    assert (
        [*map(list, result["assistant_masks"])] == [*map(list, expected["assistant_masks"])]
        if several or tensors
        else (result["assistant_masks"] == expected["assistant_masks"])
    )
    row, mask = (
        list(np.ravel(result[name][0] if several else result[name])) for name in ("input_ids", "assistant_masks")
    )
    text = fast.decode([index for index, flag in zip(row, mask, strict=True) if flag])
    assert text == "learns simple tasks</>widely used</>"


def test_unsupported_options_of_the_assistant_mask_are_refused(fast, sp_model):
    for tokenizer, options in (
        (fast, {"return_dict": False}),
        (fast, {"return_dict": True, "tokenize": False}),
        (LlamaTokenizer(sp_model), {"return_dict": True}),
    ):
        with pytest.raises(ChatTemplateError, match="fast tokenizer"):
            tokenizer.apply_chat_template(DIALOGUE, MARKED, return_assistant_tokens_mask=True, **options)
    with pytest.raises(ChatTemplateError, match="sanitize_control_tokens"):
        fast.apply_chat_template(DIALOGUE, MARKED, sanitize_control_tokens=True)


def test_arguments_of_the_call_are_passed_to_the_tokenizer(fast, reference):
    options = {"chat_template": MARKED, "return_dict": True}
    expected = reference.apply_chat_template(
        DIALOGUE, **options, tokenizer_kwargs={"return_special_tokens_mask": True, "return_attention_mask": False}
    )
    ours = {"return_special_tokens_mask": True, "return_attention_mask": False}
    assert fast.apply_chat_template(DIALOGUE, **options, tokenizer_kwargs=ours).data == expected.data
    assert fast.apply_chat_template(DIALOGUE, **options, **ours).data == expected.data  # as 4.34


def test_a_conversation_may_be_an_object(fast):
    class Conversation:
        messages = DIALOGUE

    expected = fast.apply_chat_template(conversation=DIALOGUE, chat_template=MARKED)
    assert fast.apply_chat_template(Conversation(), MARKED) == expected
    assert fast.apply_chat_template([Conversation(), Conversation()], MARKED) == [expected] * 2


def test_functions_are_described_as_in_transformers(fast, reference):
    def altitude(place: str):
        """
        Returns the altitude of a place.

        Args:
            place: the name of the place
        """

    options = {"chat_template": "{{ tools | tojson }}", "tools": [altitude], "tokenize": False}
    assert fast.apply_chat_template(DIALOGUE, **options) == reference.apply_chat_template(DIALOGUE, **options)


def test_templates_may_be_a_list(byte_level_json):
    templates = [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ 2 }}"}]
    tokenizer = LlamaTokenizerFast.from_pretrained(byte_level_json, chat_template=templates)
    assert tokenizer.chat_template == {"default": "{{ 1 }}", "tool_use": "{{ 2 }}"}
    tokenizer.chat_template = templates
    assert tokenizer.get_chat_template() == "{{ 1 }}" and tokenizer.get_chat_template(tools=[]) == "{{ 2 }}"


def test_a_message_is_encoded_as_the_continuation_of_a_conversation(fast):
    fast.chat_template = MARKED
    ids = [fast.encode_message_with_chat_template(DIALOGUE[i], DIALOGUE[:i]) for i in range(4)]
    assert [index for part in ids for index in part] == fast.apply_chat_template(DIALOGUE)
    with pytest.raises(TokenizerError, match="separately"):
        fast.encode_message_with_chat_template(DIALOGUE[0], add_generation_prompt=True)
    fast.chat_template = None
