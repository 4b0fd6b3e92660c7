"""Ctrl-C in a terminal that shows the progress of `puna train`: once, twice, and while the state is saved."""

from __future__ import annotations

import re
import signal
import sys
import time

import pytest

from tests.cli.terminal import Terminal
from tests.golden.files import LAYOUTS
from tests.helpers.torch_files import HAS_TORCH

pytestmark = pytest.mark.skipif(not HAS_TORCH, reason="PyTorch is not installed")

TRAIN = (sys.executable, "-m", "puna", "train", "sft", "-m", str(LAYOUTS["hf"]), "--data", "text.txt", "--threads", "1")
QUESTION = b"Save the state after step"
HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"
"""Escape sequences of the cursor."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("the llama lives high in the mountains. " * 20)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*options: str) -> Terminal:
    return Terminal([*TRAIN, "--max-length", "32", "-o", "out", *options], {}, columns=120)


def press_often(terminal: Terminal) -> bytes:
    """Presses Ctrl-C every millisecond until the command ends."""
    end = time.monotonic() + 60
    while terminal.process.poll() is None:
        assert time.monotonic() < end, "the command does not end"
        terminal.interrupt()
        time.sleep(0.001)
    return terminal.rest()


def assert_in_order(written: bytes) -> None:
    """No error, a visible cursor, and messages are complete lines."""
    assert b"\npuna: interrupted" in re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", written), written
    assert b"Traceback" not in written and b"Exception ignored" not in written, written
    assert written.rfind(SHOW) >= written.rfind(HIDE), written
    assert written.endswith(b"\n"), written


@pytest.mark.parametrize("answer", ["yes", "no", "interrupted", "often"])
def test_the_terminal_is_in_order_after_ctrl_c(folder, answer):
    with start("--steps", "1000000") as terminal:
        terminal.wait(b" left")  # the display of a completed step
        terminal.interrupt()
        terminal.wait(QUESTION)
        terminal.wait(b"[Y/n]: ")
        if answer in ("yes", "no"):
            terminal.send(b"\n" if answer == "yes" else b"n\n")
        elif answer == "interrupted":
            time.sleep(0.5)  # Python reads shortly after it has written; a signal in between would wait for input
            terminal.interrupt()
        written = press_often(terminal) if answer == "often" else terminal.rest()
        status = terminal.process.returncode
    assert status == 130 or (answer == "often" and status == -signal.SIGINT)
    states = list((folder / "out" / "checkpoints").glob("step-*"))
    assert len(states) == (answer != "no")
    if answer == "often":
        assert b"Traceback" not in written and b"Exception ignored" not in written, written
        return
    assert_in_order(written)
    assert (b"The state is saved in " in written) == (answer != "no")
    assert b"checkpoints/.saving-" not in written and not (folder / "out" / "checkpoints" / ".reserve").exists()


def test_a_second_ctrl_c_ends_a_long_step(folder):
    """Nothing is asked before the first step, because there is nothing to save."""
    with start("--steps", "3", "--batch-size", "100000", "--max-length", "8") as terminal:
        terminal.wait(b"step 0 of 3")
        time.sleep(0.5)  # the step begins shortly afterwards; before it, the first Ctrl-C ends the run
        terminal.interrupt()
        terminal.wait(b"Stopping after this step; press Ctrl-C again to stop at once.")
        terminal.interrupt()
        written = terminal.rest()
        assert terminal.process.returncode == 130
    assert_in_order(written)
    assert QUESTION not in written
    assert b"puna: interrupted after step 0\r\nThe state was not saved.\r\n" in written


def test_ctrl_c_before_the_first_step_leaves_the_terminal_in_order(folder):
    (folder / "rows.jsonl").write_text('{"text": "the llama lives high in the mountains"}\n' * 300_000)
    with start("--steps", "3", "--data", "rows.jsonl") as terminal:
        terminal.wait(b"Tokenising")
        terminal.interrupt()
        written = terminal.rest()
        assert terminal.process.returncode == 130
    assert_in_order(written)
