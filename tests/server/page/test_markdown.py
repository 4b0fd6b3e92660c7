"""Text that grows is shown as it would be if it had arrived at once."""

from __future__ import annotations

import pytest

from tests.server.page.texts import DEMO

SHOW = """async ([text, updates]) => {
  const { MarkdownView } = await import("/page/js/markdown/view.js");
  const article = document.createElement("article");
  article.className = "message prose";
  document.querySelector(".messages").append(article);
  const view = new MarkdownView(article);
  for (const finished of updates) while (view.update(text, finished));
}"""


@pytest.mark.parametrize("updates", [[True], [False, True], [False, True, True]])
@pytest.mark.parametrize("first, indent", [("1. Do:", "   "), ("> Do:", "> ")])
def test_code_in_another_block_is_coloured_at_the_end(person, updates, first, indent):
    lines = [first, indent, *(indent + line for line in ("```python", "def f():", "    return 'text'", "```"))]
    person.page.evaluate(SHOW, ["\n".join(lines), updates])
    person.page.locator("article pre .hljs-keyword").first.wait_for()
    assert person.page.locator("article pre").inner_text().strip() == "def f():\n    return 'text'"


def test_text_that_grows_by_characters_ends_like_text_at_once(person):
    shown = """async ([text, step]) => {
      const { MarkdownView } = await import("/page/js/markdown/view.js");
      const article = document.createElement("article");
      const view = new MarkdownView(article);
      for (let length = step; length < text.length + step; length += step)
        while (view.update(text.slice(0, length), length >= text.length));
      return article.textContent;
    }"""
    grown, complete = (person.page.evaluate(shown, [DEMO, step]) for step in (1, len(DEMO)))
    assert "return a * d" in complete
    assert grown == complete


def test_blocks_have_the_direction_of_their_text_and_wide_formulas_scroll(person):
    text = "مرحبا **llama**\n\n- عنصر\n\nEnglish $" + "x+" * 150 + "y$\n\n```\nكود\n```"
    person.page.evaluate(SHOW, [text, [True]])
    script = """() => [...document.querySelectorAll("article:last-child > *")].map((block) =>
      [block.tagName, getComputedStyle(block).direction, block.scrollWidth <= block.clientWidth])"""
    assert person.page.evaluate(script) == [
        ["P", "rtl", True], ["UL", "rtl", True], ["P", "ltr", True], ["DIV", "ltr", True],
    ]  # fmt: skip


def test_code_has_the_same_lines_however_it_arrives(person):
    lines = """async ([text, step]) => {
      const { CodeBlock } = await import("/page/js/markdown/code.js");
      const block = new CodeBlock("");
      for (let length = step; length < text.length + step; length += step) block.update(text.slice(0, length));
      return [...block.code.children].map((chunk) => chunk.textContent);
    }"""
    text = "value = 1\n" * 500
    grown, complete = (person.page.evaluate(lines, [text, step]) for step in (3, len(text)))
    assert "".join(complete) == text and len(complete) > 1
    assert grown == complete
