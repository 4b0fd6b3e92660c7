"""The server ends in the middle of an answer: the text stays, and the conversation continues with the next server."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.page.browser import Person

pytestmark = pytest.mark.slow

CUT = "The connection to the server ended before the answer was complete. The text so far is kept."


class Server:
    """The scripted server in a process of its own, which can be killed and started again at the same port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.start()

    def start(self) -> None:
        """Starts the process; returns when it answers."""
        command = [sys.executable, "-m", "tests.server.page.mock", str(self.port)]
        self.process = subprocess.Popen(command)
        while True:
            assert self.process.poll() is None, "the server ended"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
                return
            except ConnectionRefusedError:
                time.sleep(0.05)

    def kill(self) -> None:
        """Ends the process as `kill -9` does."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def server(browser: Any) -> Iterator[Server]:
    """Yields a running server."""
    pytest.importorskip("uvicorn")
    server = Server()
    yield server
    server.kill()


def test_an_answer_whose_server_is_killed_stays_and_is_continued(browser, server, expect):
    person = Person(browser, server.url)
    person.ask("hello")
    person.write("slow")
    person.see("Word 20 of")
    server.kill()
    person.see(CUT)
    answer = person.articles.last
    text = answer.locator(".body").inner_text()
    assert text.startswith("Word 0 of a slow answer. ") and "Word 20 of" in text
    assert answer.get_attribute("aria-busy") == "false"
    expect(person.page.locator("#announcements")).to_contain_text(f"Error: {CUT}")

    person.button("Continue this answer", answer).click()  # too early: nothing is lost
    person.see("The server did not answer. Check that it is running, then try again.")
    assert answer.locator(".body").inner_text() == text
    assert person.articles.count() == 4

    server.start()
    person.reload()
    assert answer.locator(".body").inner_text() == text
    person.button("Continue this answer", answer).click()
    person.see("And this is the continuation.")
    person.wait()
    assert answer.locator(".body").inner_text().startswith(text)
    assert answer.locator(".error").count() == 0
    assert "about “and now?”" in person.ask("and now?")
    person.problems[:] = [problem for problem in person.problems if "net::ERR_" not in problem]  # the lost connections
    person.close()


def test_a_stream_that_ends_in_order_without_an_end_of_the_answer_is_not_complete(person):
    """A proxy ends the response when the server behind it stops."""
    answer = person.ask("cut here")
    assert answer.startswith("Here is") and "The end." not in answer
    assert CUT in person.articles.last.inner_text()
    person.button("Continue this answer").click()
    person.wait()
    assert person.articles.last.locator(".error").count() == 0
    assert "And this is the continuation." in person.articles.last.inner_text()
