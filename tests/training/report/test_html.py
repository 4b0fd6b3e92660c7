"""report.html: complete, well-formed, and without references to anything outside the file."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from puna.training.events import End
from puna.training.report.html import write_report
from puna.training.report.recorder import MetricsWriter
from puna.training.settings import TrainingSettings, settings_text
from tests.training.report.runs import play, start

VOID = {"meta"}


class Page(HTMLParser):
    """Collects elements and texts; fails on elements that are not closed in their order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def page(tmp_path):
    play([MetricsWriter(tmp_path)], tmp_path, task="classify")
    (tmp_path / "training.toml").write_text(settings_text(TrainingSettings(model="a <model>")))
    (tmp_path / "run.json").write_text(json.dumps({"versions": {"torch": "2.13"}, "data": {"train.jsonl": "abc<d>"}}))
    path = write_report(tmp_path, "puna train sft --data 'a&b.jsonl'")
    return path.read_text()


def test_the_page_refers_to_nothing_outside(page):
    parsed = Page(page)
    for tag, attributes in parsed.elements:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "image", "use", "base", "form", "a")
        assert not {name for name in attributes if name in ("src", "href", "xlink:href", "data", "srcset", "poster")}
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?://|//[a-z]", page.partition("</style>")[0])
    policy = next(item["content"] for tag, item in parsed.elements if item.get("http-equiv"))
    assert policy.startswith("default-src 'none'")


def test_the_page_has_every_section(page):
    texts = " ".join(Page(page).texts)
    for text in (
        "tiny · classify · lora", "40 of 40", "held-out accuracy", "Loss", "Learning rate", "Gradient norm",
        "Held-out F1 macro", "Confusion matrix", "1,080", "ROC", "Samples before", "before one", "after step 40",
        "after <one>", "puna train sft --data 'a&b.jsonl'", "forward pass: fused", 'model = "a <model>"',
        "versions.torch", "abc<d>", "spam & <i>", "1,000 (1.00%)", "20 s", "2.00",
    ):  # fmt: skip
        assert text in texts, text


def test_the_page_has_colours_for_light_and_dark(page):
    assert "prefers-color-scheme: dark" in page
    colours = re.findall(r"--(\w+): (#\w+)", page)
    names = [name for name, _ in colours]
    assert sorted(names) == sorted(2 * list(dict.fromkeys(names)))


def test_curves_have_the_points_of_the_run(page):
    loss = next(item["points"] for tag, item in Page(page).elements if tag == "polyline" and "pale" in item["class"])
    assert len(loss.split()) == 40
    assert sum(tag == "circle" for tag, _ in Page(page).elements) == 3 * 4, "loss, accuracy and F1 have 4 evaluations"


def test_a_run_without_steps_or_with_one_has_a_page(tmp_path):
    Page(write_report(tmp_path).read_text())
    writer = MetricsWriter(tmp_path)
    writer.started(start(tmp_path))
    Page(write_report(tmp_path).read_text())
    writer.ended(End(0, "interrupted"))
    play([MetricsWriter(tmp_path)], tmp_path, steps=1)
    Page(write_report(tmp_path).read_text())
