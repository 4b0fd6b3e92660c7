"""Text that grows is shown as it would be if it had arrived at once."""

from __future__ import annotations

import pytest

SHOW = """async ([text, updates]) => {
  const { MarkdownView } = await import("/page/js/markdown/view.js");
  const article = document.createElement("article");
  article.className = "message";
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
