"""Short chat templates that write calls of functions in the formats of common models."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from puna import LlamaTokenizerFast

_LLAMA_3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
            "<|eom_id|>", "<|python_tag|>")  # fmt: skip
_LLAMA_4 = ("<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|eom|>",
            "<|python_start|>", "<|python_end|>")  # fmt: skip
_MISTRAL = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
            "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[ARGS]")  # fmt: skip
_CHATML = ("<|endoftext|>", "<|im_end|>", "<|im_start|>")


@dataclass(frozen=True)
class Example:
    """A template, and two calls as a model with this template writes them.

    Attributes:
        special: special tokens; the first two are BOS and EOS.
        template: the chat template.
        one: the text of one call: weather(city="Köln", days=2).
        two: the text of this call and of now(); None if an answer has only one call.
    """

    special: tuple[str, ...]
    template: str
    one: str
    two: str | None

    @property
    def tokenizer(self) -> LlamaTokenizerFast:
        """A tokenizer of bytes with the template."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        pipeline = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
        pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pipeline.decoder = decoders.ByteLevel()
        pipeline.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in self.special])
        bos, eos = self.special[:2]
        return LlamaTokenizerFast(tokenizer_object=pipeline, bos_token=bos, eos_token=eos, chat_template=self.template)


def _llama(turn: str, header: tuple[str, str], end: str) -> str:
    start, stop = header
    return (
        "{{ bos_token }}{% if tools %}" + start + "system" + stop + "\n\n{{ tools | tojson(indent=4) }}" + end
        + "{% endif %}{% for m in messages %}" + start + "{{ 'ipython' if m.role == 'tool' else m.role }}" + stop
        + "\n\n{% if m.tool_calls is defined %}" + turn + "{% else %}{{ m.content }}" + end
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}" + start + "assistant" + stop + "\n\n{% endif %}"
    )  # fmt: skip


_SINGLE = "{% if m.tool_calls | length != 1 %}{{ raise_exception('one call') }}{% endif %}"
_HEADER_3, _HEADER_4 = ("<|start_header_id|>", "<|end_header_id|>"), ("<|header_start|>", "<|header_end|>")
_EACH = "{% for c in m.tool_calls %}"
_KEYWORDS = (
    '{{ c.function.name }}({% for k in c.function.arguments %}{{ k }}="{{ c.function.arguments[k] }}"'
    "{{ ', ' if not loop.last }}{% endfor %}){{ ', ' if not loop.last }}"
)
_TAGS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls is defined %}{{ m.content }}"
_CLOSE = "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}" \
         "<|im_start|>assistant\n{% endif %}"  # fmt: skip

EXAMPLES = {
    "Llama 3.1": Example(
        _LLAMA_3,
        _llama(
            _SINGLE + '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": '
            "{{ m.tool_calls[0].function.arguments | tojson }}}<|eom_id|>",
            _HEADER_3, "<|eot_id|>",
        ),
        '{"name": "weather", "parameters": {"city": "Köln", "days": 2}}',
        None,
    ),
    "Llama 3.2, Python": Example(
        _LLAMA_3,
        _llama("[" + _EACH + _KEYWORDS + "{% endfor %}]<|eot_id|>", _HEADER_3, "<|eot_id|>"),
        '[weather(city="Köln", days=2)]',
        '[weather(city="Köln", days=2), now()]',
    ),
    "Llama 4": Example(
        _LLAMA_4,
        _llama(
            "<|python_start|>{{ m.content }}<|python_end|>" + _EACH + '{"name": "{{ c.function.name }}", "parameters": '
            "{{ c.function.arguments | tojson }}}{% endfor %}<|eom|>",
            _HEADER_4, "<|eot|>",
        ),
        '<|python_start|><|python_end|>{"name": "weather", "parameters": {"city": "Köln", "days": 2}}',
        '<|python_start|><|python_end|>{"name": "weather", "parameters": {"city": "Köln", "days": 2}}'
        '{"name": "now", "parameters": {}}',
    ),
    "functions in tags, text arguments": Example(
        _LLAMA_3,
        _llama(
            _SINGLE + "{{ '<function=' + m.tool_calls[0].function.name + '>' + "
            "m.tool_calls[0].function.arguments + '</function>' }}<|eom_id|>",
            _HEADER_3, "<|eot_id|>",
        ),
        '<function=weather>{"city": "Köln", "days": 2}</function>',
        None,
    ),
    "Hermes and Qwen": Example(
        _CHATML,
        "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + _TAGS
        + _EACH + '{{ "\\n" }}<tool_call>\n{"name": "{{ c.function.name }}", "arguments": '
        "{{ c.function.arguments | tojson }}}\n"
        "</tool_call>{% endfor %}" + _CLOSE,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
    "arguments before the name": Example(
        _CHATML,
        "{% if tools %}{{ tools | tojson }}Use <tool_call>.{% endif %}" + _TAGS + _EACH
        + '<tool_call>\n{ "arguments": {{ c.function.arguments | tojson }}, "name": "{{ c.function.name }}"}\n'
        "</tool_call> {% endfor %}" + _CLOSE,
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
    "Mistral": Example(
        _MISTRAL,
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.last %}[AVAILABLE_TOOLS]"
        "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {{ m.content }}[/INST]{% elif m.tool_calls is defined "
        "%}[TOOL_CALLS] [" + _EACH + "{% if c.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}"
        "{{ (c.function | tojson)[:-1] }}, \"id\": \"{{ c.id }}\"}{{ ', ' if not loop.last else ']' }}{% endfor %}"
        "{{ eos_token }}{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% else %} "
        "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln", "days": 2}, "id": "Abc123xyz"}]',
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln", "days": 2}, "id": "Abc123xyz"}, '
        '{"name": "now", "arguments": {}, "id": "123456789"}]',
    ),
    "Mistral 11": Example(
        _MISTRAL,
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.last %}[AVAILABLE_TOOLS]"
        "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls is defined "
        "%}{{ m.content }}" + _EACH + "[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}"
        "{% endfor %}{{ eos_token }}{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]{% else %} "
        "{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        '[TOOL_CALLS]weather[ARGS]{"city": "Köln", "days": 2}',
        '[TOOL_CALLS]weather[ARGS]{"city": "Köln", "days": 2}[TOOL_CALLS]now[ARGS]{}',
    ),
    "tools without earlier calls": Example(
        _CHATML,
        "{% if tools %}Answer with [TOOL_CALLS]: {{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>"
        "{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln", "days": 2}}]',
        '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln", "days": 2}}, {"name": "now", "arguments": {}}]',
    ),
    "a template that ignores tools": Example(
        _CHATML,
        "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}{{ raise_exception('role') }}"
        "{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ),
}  # fmt: skip
