"""The chat templates built in: Llama 2's and Llama 3's, in Jinja as Hugging Face files spell them."""

from __future__ import annotations

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe. "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
"""Meta's system prompt for Llama 2 Chat (llama/generation.py, July 2023)."""

_TEXT_ONLY = """\
{%- for message in messages -%}
  {%- if message['content'] is not string -%}
    {{- raise_exception("the built-in template shows text only, so each message needs 'content', a string") -}}
  {%- endif -%}
{%- endfor -%}
"""
"""Refuses parts of content and tool calls, which would appear as Python spells them, and turns without content."""

_LLAMA_2 = """\
{%- set ns = namespace(system=DEFAULT_PROMPT) -%}
{%- if messages[0]['role'] == 'system' -%}
  {%- set ns.system = messages[0]['content'] -%}
  {%- set turns = messages[1:] -%}
{%- else -%}
  {%- set turns = messages -%}
  {%- if '<<SYS>>' in messages[0]['content'] -%}{%- set ns.system = none -%}{%- endif -%}
{%- endif -%}
{%- if not turns -%}
  {{- raise_exception('Llama 2 writes the system message into the first user message; add one') -}}
{%- endif -%}
{%- for message in turns -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
  {%- endif -%}
  {%- set content = message['content'] -%}
  {%- if loop.first and ns.system is not none -%}
    {%- set content = '<<SYS>>\\n' + ns.system + '\\n<</SYS>>\\n\\n' + content -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {%- elif message['role'] == 'system' -%}
    {{- '<<SYS>>\\n' + content.strip() + '\\n<</SYS>>\\n\\n' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' ' + content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}
"""

LLAMA_3 = (
    _TEXT_ONLY
    + """\
{{- bos_token -}}
{%- for message in messages -%}
  {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
)
"""Llama 3's turns: header, blank line, trimmed text, <|eot_id|> (llama3/llama/tokenizer.py, ChatFormat)."""

LLAMA_3_TOKENS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
"""A vocabulary with all of these speaks Llama 3's chat format."""


def llama_2_template(use_default_system_prompt: bool) -> str:
    """Llama 2's turns, the system message folded into the first; with Meta's system prompt where there is none."""
    prompt = "none"
    if use_default_system_prompt:
        quoted = DEFAULT_SYSTEM_PROMPT.replace("\n", "\\n").replace("'", "\\'")
        prompt = f"'{quoted}'"
    return _TEXT_ONLY + _LLAMA_2.replace("DEFAULT_PROMPT", prompt)
