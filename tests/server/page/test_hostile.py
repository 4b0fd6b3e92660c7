"""Text of a model runs nothing, loads nothing and never blocks the page, whatever it contains."""

from __future__ import annotations

import pytest

from tests.server.page.texts import HOSTILE

pytestmark = pytest.mark.slow

GROW = """async (texts) => {
  const { MarkdownView } = await import("/page/js/markdown/view.js");
  const article = document.createElement("article");
  article.className = "message";
  document.querySelector(".messages").append(article);
  const grow = async (text) => {
    const view = new MarkdownView(article);
    const step = Math.ceil(text.length / 300);
    let slowest = 0;
    for (let length = 1; length < text.length + step; length += step) {
      const begin = performance.now();
      while (view.update(text.slice(0, length), length >= text.length));
      slowest = Math.max(slowest, performance.now() - begin);
    }
    await new Promise((resolve) => setTimeout(resolve));
    return slowest;
  };
  const slow = [];
  for (const text of texts) {
    let best = Infinity;
    for (let round = 0; round < 5 && best > 500; round++) best = Math.min(best, await grow(text));
    if (best > 500) slow.push([best, text.slice(0, 40)]);
  }
  return slow;
}"""
"""Returns the texts with a prefix that takes more than 500 ms each time; once may be the fault of another process."""


def test_there_are_at_least_200_hostile_texts():
    assert len(set(HOSTILE)) >= 200


@pytest.mark.parametrize("part", range(6))
def test_answers_that_arrive_by_characters_run_nothing(person, part):
    """Over HTTP, one event a character; the mouse presses everything that looks like a link."""
    for number in range(part, len(HOSTILE), 6):
        if number // 6 % 10 == 0:
            person.button("New conversation").click()
        person.ask(f"hostile {number}")
        person.check()
    for link in person.page.locator(".prose a").all()[:20]:
        link.dispatch_event("mouseover")
        link.focus()


@pytest.mark.parametrize("part", range(4))
def test_every_prefix_is_drawn_safely_and_quickly(person, part):
    """Without batching by frames: each prefix is parsed, so that every unclosed tag and fence is seen."""
    slow = person.page.evaluate(GROW, HOSTILE[part::4])
    person.check()
    assert slow == []


def test_hidden_characters_are_shown(person):
    texts = {text[:3]: number for number, text in enumerate(HOSTILE)}
    answer = person.ask(f"hostile {texts[chr(0x202E) + 'wi']}")
    assert "⟦U+202E⟧" in answer and "⟦U+200B⟧" in answer and "\u202e" not in answer
    answer = person.ask(f"hostile {texts[chr(27) + '[2']}")
    assert "␛[2J␛]8;;" in answer and "⟦U+9B⟧" not in answer and "⟦U+009B⟧" in answer


def test_links_show_their_host_and_pass_nothing_on(person):
    person.ask("demo")
    link = person.page.locator(".prose a").first
    assert link.inner_text() == "the article\u00a0(en.wikipedia.org)"
    assert link.get_attribute("rel") == "noopener noreferrer nofollow"
    assert link.get_attribute("referrerpolicy") == "no-referrer"


def test_titles_and_names_are_text(person):
    person.ask("<img src=x onerror=window.__pwned=1> **x**")
    assert "<img src=x" in person.page.locator(".conversation-list").inner_text()
    assert "<img src=x" in person.articles.first.inner_text()
