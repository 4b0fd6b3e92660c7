"""A browser for the tests of the page: playwright with Debian's Chromium. Tests that need it skip without either."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.page.browser import PATIENCE, Person

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")  # its event loop runs until the fixture ends, and other modules start their own
def browser() -> Iterator[Any]:
    """Yields a browser without windows."""
    api = pytest.importorskip("playwright.sync_api", reason="`make test-page` installs playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium; `apt-get install chromium` provides it")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=PATIENCE)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def mock() -> Iterator[Any]:
    """Yields the scripted server; its URL is `mock.url`."""
    pytest.importorskip("uvicorn")
    from tests.server.page.mock import Mock, serve

    mock = Mock()
    with serve(mock.app) as mock.url:
        yield mock


@pytest.fixture
def person(browser: Any, mock: Any) -> Iterator[Person]:
    """Yields a person with an empty browser profile; at the end, checks the safety of everything that happened."""
    person = Person(browser, mock.url)
    yield person
    person.close()


@pytest.fixture
def expect() -> Any:
    """Returns playwright's assertions, which wait."""
    expect = pytest.importorskip("playwright.sync_api").expect
    expect.set_options(timeout=PATIENCE)
    return expect
