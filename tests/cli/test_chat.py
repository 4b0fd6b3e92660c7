"""`puna chat` with pipes: texts separated by NUL, and JSON lines; the limit of the context; commands; word wrap."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from puna import LLM
from puna.cli.chat.conversation import Conversation
from puna.cli.chat.slash import COMMANDS, Session, help_text, is_command, run_command
from puna.cli.chat.terminal import chat_in_terminal
from puna.cli.loading import Loader
from puna.cli.wrap import WordWrap
from puna.errors import PunaError, RequestError
from tests.cli.test_cli import run


def chat(model: Path, *arguments: str, input: str | bytes, status: int = 0):
    """Runs `puna chat` for answers of at most six tokens, and asserts its exit status."""
    result = run("chat", "-m", str(model), "-n", "6", *arguments, input=input)
    assert result.exit_code == status, result.output
    return result


def answers(model: Path, *texts: str, system: str | None = None) -> list[str]:
    """Returns the answers of a conversation, computed with the Python interface."""
    llm = LLM(model)
    messages = [] if system is None else [{"role": "system", "content": system}]
    for text in texts:
        messages.append({"role": "user", "content": text})
        messages.append({"role": "assistant", "content": llm.chat(messages, max_tokens=6).text})
    return [message["content"] for message in messages if message["role"] == "assistant"]


def test_piped_text_is_one_message_and_nul_separates_messages(tiny_model):
    (one,) = answers(tiny_model, "the llama\n\nlives")
    assert chat(tiny_model, input="the llama\n\nlives\n").stdout == f"{one}\n"
    first, second = answers(tiny_model, "the llama", "/usr/bin", system="brief")
    assert chat(tiny_model, "--system", "brief", input="the llama\n\0/usr/bin\0").stdout == f"{first}\n{second}\n"


def test_an_error_names_the_message_and_its_line(tiny_model):
    result = chat(tiny_model, input=b"a\nb\0\n\0\nc\xff", status=1)
    assert "puna: message 2 on line 4: the message is not UTF-8" in result.stderr
    result = chat(tiny_model, input="hi\0\n\n" + "xyz" * 99, status=1)
    assert "puna: message 2 on line 3: the conversation would have " in result.stderr
    assert "the context has 256. Shorten the message" in result.stderr


def test_json_lines_have_roles_and_documented_fields(tiny_model):
    lines = [
        '{"role": "system", "content": "brief"}',
        "",
        '{"role": "user", "content": "the llama"}',
        '"two\\nlines"',
        '{"role": "user", "content": [{"type": "text", "text": "plain"}]}',
    ]
    outputs = [json.loads(line) for line in chat(tiny_model, "--json", input="\n".join(lines)).stdout.splitlines()]
    expected = answers(tiny_model, "the llama", "two\nlines", "plain", system="brief")
    assert [output["content"] for output in outputs] == expected
    assert list(outputs[0]) == [
        "role",
        "content",
        "finish_reason",
        "dropped_messages",
        "prompt_tokens",
        "tokens",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    ]
    assert outputs[0]["role"] == "assistant"
    assert outputs[0]["prompt_tokens"] > 0


def test_json_history_replaces_the_models_answer(tiny_model):
    history = [
        {"role": "user", "content": "the llama"},
        {"role": "assistant", "content": "lives"},
        {"role": "user", "content": "where?"},
    ]
    expected = LLM(tiny_model).chat(history, max_tokens=6).text
    separate = chat(tiny_model, "--json", input="\n".join(map(json.dumps, history))).stdout.splitlines()
    combined = chat(tiny_model, "--json", input=json.dumps(history)).stdout.splitlines()
    assert json.loads(separate[-1])["content"] == json.loads(combined[0])["content"] == expected
    assert (len(separate), len(combined)) == (2, 1)


def test_the_message_of_a_tool_is_answered(tiny_model):
    call = {"type": "function", "function": {"name": "height", "arguments": {}}}
    history = [
        {"role": "user", "content": "the llama"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "high"},
    ]
    (line,) = chat(tiny_model, "--json", input=json.dumps(history)).stdout.splitlines()
    assert json.loads(line)["content"] == LLM(tiny_model).chat(history, max_tokens=6).text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"role": "user", "content": "hi"', "is not JSON"),
        ("not json", "'not json' is not JSON"),
        ("null", "messages[0] is None"),
        ("42", "messages[0] is 42"),
        ('{"role": "usr", "content": "hi"}', "the role is 'usr'; it must be one of system, user, assistant, tool"),
        ('{"role": "user", "content": 5}', "messages[0]['content'] is 5"),
        ("[]", "messages is empty"),
        ("[5]", "messages[0] is 5"),
        ('[[{"role": "user", "content": "hi"}]]', "list of lists"),
        ("[" * 5000, "is not JSON"),
    ],
)
def test_malformed_json_lines_are_refused_with_their_line_number(tiny_model, line, words):
    result = chat(tiny_model, "--json", input=f'"hi"\n\n{line}\n', status=1)
    assert "puna: message 2 on line 3: " in result.stderr
    assert words in result.stderr
    assert len(result.stdout.splitlines()) == 1


@pytest.fixture
def conversation(tiny_model) -> Conversation:
    return Conversation("tiny", LLM(tiny_model), {"max_tokens": 8}, "brief", 100)


def test_the_oldest_turns_are_dropped_when_the_context_is_full(conversation):
    replies = [conversation.say(f"the llama {number}") for number in range(8)]
    assert sum(reply.dropped_messages for reply in replies) > 0
    assert conversation.messages[0] == {"role": "system", "content": "brief"}
    assert conversation.messages[1]["role"] == "user"
    assert conversation.messages[-2]["content"] == "the llama 7"
    assert all(reply.prompt_tokens + reply.tokens <= 100 for reply in replies)
    assert all(reply.dropped_messages % 2 == 0 for reply in replies)
    remaining = [message["content"] for message in conversation.messages if message["role"] == "user"]
    assert remaining == [f"the llama {number}" for number in range(8 - len(remaining), 8)]


def test_a_message_that_cannot_be_answered_leaves_the_conversation_unchanged(conversation):
    conversation.say("the llama")
    before = list(conversation.messages)
    with pytest.raises(RequestError, match="the context has 100"):
        conversation.say("the llama " * 90)
    assert conversation.messages == before


def test_ctrl_c_keeps_the_beginning_of_an_answer(conversation):
    pieces = []

    def stop_at_the_third(piece):
        pieces.append(piece)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    reply = conversation.say("the llama", stop_at_the_third, stoppable=True)
    assert (reply.content, reply.finish_reason) == ("".join(pieces), "interrupted")
    assert conversation.messages[-1] == {"role": "assistant", "content": reply.content}
    assert conversation.say("and then?").finish_reason == "length"  # the engine is free again
    pieces.clear()
    with pytest.raises(KeyboardInterrupt):
        conversation.say("the llama", stop_at_the_third)


@pytest.mark.parametrize("part", ["_fit", "start", "first piece"])
def test_ctrl_c_before_the_answer_is_reported_and_leaves_the_conversation_unchanged(
    conversation, monkeypatch, capsys, part
):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    conversation.say("the llama")
    before = list(conversation.messages)
    with monkeypatch.context() as patch:
        if part == "_fit":
            patch.setattr(conversation, "_fit", interrupt)
        elif part == "start":
            patch.setattr(conversation.llm, "start", interrupt)
        else:
            patch.setattr("puna.cli.chat.conversation.first_piece", interrupt)
        texts = iter(["and then?", "/bye"])
        patch.setattr("puna.cli.chat.terminal.message_reader", lambda *arguments: lambda: next(texts))
        chat_in_terminal(conversation, Loader(), None)
    assert "Stopped before an answer; the message is not part of the conversation." in capsys.readouterr().err
    assert conversation.messages == before
    assert conversation.say("and then?").content


def command(conversation: Conversation, text: str) -> str:
    """Runs a command of the chat, such as "/history", and returns its output."""
    return run_command(Session(conversation, Loader()), text)


def test_commands_change_the_conversation(conversation):
    conversation.say("the llama")
    assert "user: the llama" in command(conversation, "/history")
    assert command(conversation, "/undo") == "Messages left: 1."
    assert "set" in command(conversation, "/system be long")
    assert conversation.system == "be long"
    assert command(conversation, "/reset") == "Conversation restarted."
    assert conversation.messages == [{"role": "system", "content": "be long"}]
    assert "removed" in command(conversation, "/system")
    assert command(conversation, "/history") == "Empty."
    assert "Did you mean /help?" in command(conversation, "/hlep")
    assert all(name in command(conversation, "/help") for name in COMMANDS)


def test_a_filter_keeps_the_temperature_of_the_fallback(conversation):
    conversation.fallback = {"temperature": 0.7, "top_p": 0.95}
    command(conversation, "/set top_p 0.5")
    assert conversation.options == {"temperature": 0.7, "top_p": 0.5, "max_tokens": 8}
    command(conversation, "/set temperature 0")
    assert conversation.options == {"temperature": 0.0, "top_p": 0.5, "max_tokens": 8}


def test_save_reports_replaced_files_and_missing_folders(conversation, tmp_path):
    path = tmp_path / "chat.json"
    assert "in place of" not in command(conversation, f"/save {path}")
    assert "in place of an earlier conversation" in command(conversation, f"/save {path}")
    with pytest.raises(PunaError, match=r"the folder .*absent does not exist"):
        command(conversation, f"/save {tmp_path / 'absent' / 'chat.json'}")
    assert command(conversation, "/clear") == "Conversation restarted."


def test_set_changes_options_and_refuses_invalid_values(conversation):
    assert command(conversation, "/set temperature 0.5") == "temperature is now 0.5."
    assert command(conversation, "/set speculate on") == "speculate is now on."
    assert command(conversation, "/set max-tokens default") == "max_tokens is now the model's default."
    assert conversation.settings == {"temperature": 0.5, "speculate": True}
    assert command(conversation, "/set context 50") == "context is now 50."
    assert command(conversation, "/set temperature") == "temperature is 0.5."
    assert "top_k                the model's default" in command(conversation, "/set")
    for text, words in [
        ("/set temprature 1", "Did you mean temperature"),
        ("/set temperature hot", "temperature must be a number, got 'hot'"),
        ("/set temperature -1", "temperature is -1.0"),
        ("/set speculate maybe", "speculate must be on or off"),
        ("/set max_tokens 0", "it must be 1 or more"),
        ("/set context 9999", "supports 2 to 256 tokens"),
    ]:
        with pytest.raises(PunaError, match=words):
            command(conversation, text)
    assert conversation.settings == {"temperature": 0.5, "speculate": True}


def test_the_fallback_applies_only_if_neither_the_user_nor_the_model_samples(conversation):
    conversation.fallback = {"temperature": 0.7, "top_p": 0.95}
    assert conversation.options == {"max_tokens": 8, "temperature": 0.7, "top_p": 0.95}
    assert command(conversation, "/set temperature") == "temperature is 0.7."
    command(conversation, "/set temperature 0")
    assert conversation.options == {"max_tokens": 8, "temperature": 0.0}
    command(conversation, "/set temperature default")
    conversation.llm.generation_config.do_sample = True
    assert conversation.options == {"max_tokens": 8}


def test_save_and_load_round_trip(conversation, tmp_path):
    conversation.say("the llama\n“lives”")
    messages = list(conversation.messages)
    command(conversation, f"/save {tmp_path}/chat.json")
    command(conversation, f"/save {tmp_path}/chat.json")  # an earlier conversation may be replaced
    conversation.reset(None)
    command(conversation, f"/load {tmp_path}/chat.json")
    assert conversation.messages == messages
    (tmp_path / "lines.jsonl").write_text("\n".join(map(json.dumps, messages)))
    command(conversation, f"/load {tmp_path}/lines.jsonl")
    assert conversation.messages == messages


def test_save_and_load_refuse_a_file_that_is_not_a_saved_conversation(conversation, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years of work")
    with pytest.raises(PunaError, match="exists and is not a saved conversation"):
        command(conversation, f"/save {tmp_path}/thesis.txt")
    with pytest.raises(PunaError, match="is not a saved conversation"):
        command(conversation, f"/load {tmp_path}/thesis.txt")
    with pytest.raises(PunaError, match=r"Did you mean .*thesis\.txt\?"):
        command(conversation, f"/load {tmp_path}/thesis.tx")
    with pytest.raises(PunaError, match="needs the name of a file"):
        command(conversation, "/save")
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


def test_the_model_command_keeps_the_conversation(conversation, tiny_model):
    conversation.say("the llama")
    messages = list(conversation.messages)
    with pytest.raises(PunaError, match="no such file"):
        command(conversation, "/model /nowhere")
    assert "tiny (native backend, context of 100 tokens)" in command(conversation, f"/model {tiny_model}")
    assert conversation.messages == messages
    assert conversation.say("and then?").content
    assert "The model is tiny" in command(conversation, "/model")
    command(conversation, "/set context default")
    assert "tiny (native backend, context of 256 tokens)" in command(conversation, f"/model {tiny_model}")


def test_a_model_whose_context_is_too_short_leaves_the_current_model(conversation, tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "short")
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    with pytest.raises(RequestError, match="context is 100; short supports 2 to 64 tokens"):
        command(conversation, f"/model {tmp_path}/short")
    assert conversation.say("the llama").content


def test_one_model_is_in_memory_and_a_failure_restores_the_previous(conversation, tiny_model, tmp_path, monkeypatch):
    name, previous = conversation.name, conversation.llm
    load = Loader.load_checkpoint
    loaded = []

    def observe(loader, name, checkpoint):
        with pytest.raises(PunaError, match="closed"):
            previous.generate("x")
        loaded.append(name)
        if name == "other":
            raise PunaError("the weights do not fit in memory")
        return load(loader, name, checkpoint)

    monkeypatch.setattr(Loader, "load_checkpoint", observe)
    shutil.copytree(tiny_model, tmp_path / "other")
    with pytest.raises(PunaError, match="do not fit in memory"):
        command(conversation, f"/model {tmp_path}/other")
    assert loaded == ["other", name] and conversation.name == name
    assert conversation.say("the llama").content


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_the_help_is_wrapped_at_words_with_an_indented_column(width):
    text = help_text(width)
    commands, _, keys = text.partition("\n\n")
    assert all(len(line) < width for line in text.splitlines())
    assert all(line.startswith(("/", " " * 20)) and line[20] != " " for line in commands.splitlines())
    assert "begins with /" in " ".join(keys.split())
    assert [line.split()[0] for line in commands.splitlines() if line[0] == "/"] == [
        *(name for name in COMMANDS if name != "/clear"), "/bye",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/help", True),
        ("/nonsense", True),
        ("/system two\nlines", True),
        ("/usr/bin/env is a path", False),
        ("/* a comment */", False),
        ("/nonsense\nin two lines", False),
        (" /help", False),
        ("help", False),
    ],
)
def test_commands_are_distinguished_from_messages(text, expected):
    assert is_command(text) == expected


def wrap_text(text: str, width: int, piece: int) -> str:
    """Returns a text that was wrapped while it arrived in pieces of `piece` characters."""
    output: list[str] = []
    wrap = WordWrap(output.append, lambda: width)
    for start in range(0, len(text), piece):
        wrap.feed(text[start : start + piece])
    wrap.finish()
    return "".join(output)


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the llama lives high", "the llama\nlives high"),
        ("  indented\n\n    code", "  indented\n\n    code"),
        ("averyveryverylongword x", "averyveryve\nrylongword\nx"),
        ("日本語日本語日本語", "日本語日本\n語日本語"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("e\u0301 " * 7, "e\u0301 e\u0301 e\u0301 e\u0301 e\u0301 e\u0301\ne\u0301"),
    ],
)
def test_words_are_wrapped_at_the_width(text, expected, piece):
    assert wrap_text(text, 12, piece) == expected


def test_word_wrap_follows_a_changed_width():
    output: list[str] = []
    widths = iter([20] * 9 + [8] * 99)
    wrap = WordWrap(output.append, lambda: next(widths))
    wrap.feed("the llama lives in the high grassland ")
    wrap.finish()
    assert max(map(len, "".join(output).split("\n")[1:])) <= 10
