"""The amount of reasoning becomes variables of the chat template, if the template uses them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from puna.server.errors import ApiError
from puna.server.protocol.reasoning import read_effort, switches


def service_with(template: str) -> Any:
    """Returns a service whose model has a chat template."""
    tokenizer = SimpleNamespace(get_chat_template=lambda: template)
    return SimpleNamespace(llm=SimpleNamespace(tokenizer=tokenizer))


@pytest.mark.parametrize(
    ("template", "effort", "variables"),
    [
        ("{{ messages }}", None, {}),
        ("{{ messages }}", "none", {}),
        ("{% if enable_thinking %}<think>{% endif %}", "none", {"enable_thinking": False}),
        ("{% if enable_thinking %}<think>{% endif %}", "high", {"enable_thinking": True}),
        ("{{ reasoning_effort }}", "low", {"reasoning_effort": "low"}),
    ],
)
def test_effort_becomes_variables(template: str, effort: str | None, variables: dict[str, Any]) -> None:
    assert read_effort(effort, "reasoning_effort", service_with(template)) == variables


def test_effort_without_a_switch_is_refused() -> None:
    with pytest.raises(ApiError, match="cannot switch reasoning") as error:
        read_effort("low", "reasoning.effort", service_with("{{ enable_thinking_later }}"))
    assert error.value.param == "reasoning.effort"


def test_words_that_contain_a_switch_are_not_switches() -> None:
    assert switches(service_with("{{ enable_thinking_later }}{{ my_reasoning_effort }}")) == ()
