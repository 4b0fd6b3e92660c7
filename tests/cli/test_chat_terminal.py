"""`puna chat` in a pseudo-terminal: pasted text, several lines, Ctrl-C, history, word wrap, leaving."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from puna import LLM
from tests.cli.terminal import PROMPT, Terminal

PUNA = str(Path(sys.executable).with_name("puna"))


@pytest.fixture
def chat(tiny_model, tmp_path):
    def start(*arguments: str, columns: int = 80) -> Terminal:
        command = [PUNA, "chat", "-m", str(tiny_model), "-n", "6", "-t", "0", *arguments]
        return Terminal(command, {"XDG_STATE_HOME": str(tmp_path / "state")}, columns)

    return start


def save_messages(terminal: Terminal, path: Path) -> list[dict[str, str]]:
    """Saves the conversation with /save and returns its messages."""
    terminal.send(f"/save {path}\r".encode())
    terminal.wait(b"saved to")
    terminal.wait(PROMPT)
    return json.loads(path.read_text())


def test_pasted_lines_and_new_lines_are_one_message(chat, tiny_model, tmp_path):
    with chat() as terminal:
        terminal.wait(PROMPT)
        terminal.send(b"\x1b[200~the llama\n  lives\x1b[201~")
        terminal.send(b"\x1b\rhigh\r")
        terminal.wait(b"tok/s")
        terminal.wait(PROMPT)
        user, assistant = save_messages(terminal, tmp_path / "chat.json")
        assert user == {"role": "user", "content": "the llama\n  lives\nhigh"}
        assert assistant["content"] == LLM(tiny_model).chat([user], max_tokens=6).text


def test_the_model_and_the_speed_are_shown(chat):
    with chat() as terminal:
        assert "tiny (native backend, context of 256 tokens)" in terminal.wait(PROMPT)
        terminal.send(b"the llama\r")
        terminal.wait(b"[tiny: 6 tokens, maximum length, ")
        assert "tok/s; context" in terminal.wait(PROMPT)


@pytest.mark.parametrize("word", [b"exit\r", b"/bye\r", b"\x04"])
def test_each_way_of_leaving_ends_the_process(chat, word):
    with chat() as terminal:
        terminal.wait(PROMPT)
        terminal.send(word)
        assert terminal.process.wait(timeout=20) == 0


@pytest.mark.parametrize("sequence", [b"\x1b[31m", b"\x1b[M!!!", b"\x1b[<0;9;9M", b"\x1b[5;3R"])
def test_escape_sequences_are_ignored(chat, tmp_path, sequence):
    with chat() as terminal:
        terminal.wait(PROMPT)
        terminal.send(b"the " + sequence + b"llama\r")
        assert "Unhandled exception" not in terminal.wait(b"tok/s")
        terminal.wait(PROMPT)
        assert save_messages(terminal, tmp_path / "chat.json")[0]["content"] == "the llama"


def test_ctrl_c_clears_the_line(chat, tmp_path):
    with chat() as terminal:
        terminal.wait(PROMPT)
        terminal.send(b"abandoned\x03")
        terminal.wait(PROMPT)
        terminal.send(b"the llama\r")
        terminal.wait(b"tok/s")
        terminal.wait(PROMPT)
        assert save_messages(terminal, tmp_path / "chat.json")[0]["content"] == "the llama"


@pytest.mark.slow
def test_the_history_is_private_and_survives_the_session(chat, tmp_path):
    with chat() as terminal:
        terminal.wait(PROMPT)
        terminal.send(b"\x1b[200~two\nlines\x1b[201~\r")
        terminal.wait(b"tok/s")
        terminal.wait(PROMPT)
        terminal.send(b"\x04")
        terminal.process.wait(timeout=20)
    file = tmp_path / "state/puna/chat_history"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with chat() as terminal:
        terminal.wait(PROMPT)
        terminal.send(b"\x1b[A\r")  # the up arrow
        terminal.wait(b"tok/s")
        terminal.wait(PROMPT)
        assert save_messages(terminal, tmp_path / "chat.json")[0]["content"] == "two\nlines"


def test_without_a_writable_folder_the_chat_has_no_history(chat, tmp_path):
    (tmp_path / "state").write_text("a file, not a folder")
    with chat() as terminal:
        assert "the history of chats is not kept" in terminal.wait(PROMPT)
        terminal.send(b"the llama\r")
        terminal.wait(b"tok/s")


def test_errors_do_not_end_the_chat(chat):
    with chat() as terminal:
        terminal.wait(PROMPT)
        terminal.send(b"xyz" * 99 + b"\r")
        terminal.wait(b"Shorten the message")
        terminal.wait(PROMPT)
        terminal.send(b"/set temprature 1\r")
        terminal.wait(b"Did you mean temperature")
        terminal.wait(PROMPT)
        terminal.send(b"the llama\r")
        terminal.wait(b"tok/s")


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_the_conversation_continues(smollm2, tmp_path):
    with Terminal([PUNA, "chat", "-t", "0"], {"XDG_STATE_HOME": str(tmp_path)}, columns=40) as terminal:
        terminal.wait(PROMPT)
        terminal.send(b"Write a very long story about a llama.\r")
        terminal.wait(b"\x1b[?2004l")
        terminal.wait(b"llama")
        terminal.interrupt()
        terminal.wait(b"stopped;")
        terminal.wait(PROMPT)
        messages = save_messages(terminal, tmp_path / "chat.json")
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert "llama" in messages[1]["content"]
        terminal.send(b"Name a planet.\r")
        terminal.wait(b"tok/s")
        terminal.wait(PROMPT)
        assert len(save_messages(terminal, tmp_path / "chat.json")) == 4


@pytest.mark.parametrize("columns", [60, 30])
def test_generate_breaks_lines_between_words(tiny_model, tmp_path, columns):
    prompt = "one grassland llama walks over another hill " * 4
    arguments = [PUNA, "generate", prompt, "-m", str(tiny_model), "-n", "4", "-t", "0"]
    with Terminal(arguments, {}, columns) as terminal:
        terminal.wait(b"one grass")
        lines = f"one grass{terminal.wait(b'prompt: ')}".splitlines()[:-1]
    exact = subprocess.run(arguments, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=True).stdout
    assert exact.startswith(prompt) and "\n" not in exact[: len(prompt)]
    assert columns - 15 < max(map(len, lines)) < columns
    assert " ".join(lines).split() == exact.split()


@pytest.mark.slow
def test_answers_are_wrapped_at_the_width_of_the_terminal(smollm2, tmp_path):
    with Terminal([PUNA, "chat", "-t", "0", "-n", "60"], {"XDG_STATE_HOME": str(tmp_path)}, columns=50) as terminal:
        for columns in (50, 30):
            terminal.resize(columns)
            terminal.wait(PROMPT)
            terminal.send(b"Write three sentences about llamas.\r")
            terminal.wait(b"\x1b[?2004l")
            lines = terminal.wait(b"[SmolLM2").splitlines()[:-1]
            assert columns - 15 < max(map(len, lines)) < columns
