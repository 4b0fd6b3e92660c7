"""The files of the page, without a browser: digests, references between files, HTML, headers."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path

import pytest

from puna.server.page.files import FOLDER, HEADERS, page_files

VENDOR = FOLDER / "vendor"
ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = sorted((FOLDER / "js").rglob("*.js"))
STYLES = sorted((FOLDER / "css").rglob("*.css"))


def digests() -> dict[str, str]:
    """Returns the digest of each vendored file by path."""
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def test_vendored_files_have_the_listed_digests():
    files = {path.relative_to(VENDOR).as_posix(): path for path in VENDOR.rglob("*") if path.is_file()}
    assert files.keys() - {"README.md", "SHA256SUMS"} == digests().keys()
    for name, digest in digests().items():
        assert hashlib.sha256(files[name].read_bytes()).hexdigest() == digest, name


def test_each_library_has_a_licence_and_a_row_in_the_list():
    readme = (VENDOR / "README.md").read_text()
    folders = [path.name for path in VENDOR.iterdir() if path.is_dir()]
    assert len(folders) == 4
    for name in folders:
        text = (VENDOR / name / "LICENSE").read_text()
        assert re.search(r"MIT License|Permission is hereby granted|Apache License|BSD 3-Clause", text), name
        assert f"\n| {name} |" in readme


def test_the_versions_of_the_list_are_those_of_the_files():
    rows = re.findall(r"^\| (\w+) \| `[^|]*\| ([\d.]+) \|", (VENDOR / "README.md").read_text(), re.M)
    assert len(rows) == 4
    for folder, version in rows:
        heads = [path.read_bytes()[:400].decode(errors="replace") for path in (VENDOR / folder).iterdir()]
        script = next(path for path in (VENDOR / folder).iterdir() if path.suffix in (".js", ".mjs"))
        assert version in "".join(heads) or f'"{version}"' in script.read_text(), folder


def test_every_file_is_in_the_wheel():
    """scikit-build-core leaves out files that git ignores, and includes all others of the package."""
    names = [path.relative_to(ROOT).as_posix() for path in FOLDER.rglob("*") if path.is_file()]
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    run = subprocess.run(["git", "check-ignore", "--no-index", *names], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout == ""
    settings = (ROOT / "pyproject.toml").read_text()
    assert 'wheel.packages = ["src/puna"]' in settings and "wheel.exclude" not in settings


def _references(path: Path) -> list[str]:
    text = path.read_text()
    if path.suffix == ".css":
        return re.findall(r"""url\(['"]?([^'")]+)""", text)
    return re.findall(r"""(?:^import|^export|^\} from|from)\s*["']([^"']+)["']""", text, re.M)


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES], ids=lambda path: path.name)
def test_files_refer_to_served_files_only(path):
    for name in _references(path):
        target = (path.parent / name).resolve()
        assert name.startswith(".") and f"/page/{target.relative_to(FOLDER).as_posix()}" in page_files(), name


@pytest.mark.parametrize("path", [*SCRIPTS, *STYLES, FOLDER / "index.html"], ids=lambda path: path.name)
def test_own_files_name_no_other_origin(path):
    allowed = {"http://www.w3.org/2000/svg"}
    assert (
        set(re.findall(r"""(?:https?:)?//[\w-]+\.[\w./-]+""", re.sub(r"^\s*//.*$", "", path.read_text(), flags=re.M)))
        <= allowed
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_own_scripts_never_parse_html_or_run_text(path):
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|setHTML|srcdoc"
    sinks += r"|\beval\(|new Function|\bimport\("
    code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)  # comments name types by import("...")
    assert not re.search(sinks, code)
    assert len(path.read_text().splitlines()) <= 400


class _Page(HTMLParser):
    VOID = frozenset({"meta", "link", "path", "use", "img", "input", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inline = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is repeated"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.VOID or self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("script", "style"):
            self.inline += data


@pytest.fixture(scope="module")
def index() -> _Page:
    """Returns the parsed index.html."""
    page = _Page()
    page.feed((FOLDER / "index.html").read_text())
    return page


def test_the_html_is_valid_and_has_nothing_that_the_policy_forbids(index):
    assert (FOLDER / "index.html").read_text().startswith("<!doctype html>\n<html lang=")
    assert index.open == [] and index.inline == ""
    ids = [attributes["id"] for _, attributes in index.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in index.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or f"/{value}" in page_files(), value
    landmarks = [tag for tag, _ in index.elements if tag in ("nav", "main", "header")]
    assert landmarks == ["nav", "main", "header"]


def test_elements_and_icons_that_scripts_use_exist(index):
    ids = {attributes.get("id") for _, attributes in index.elements}
    source = "".join(path.read_text() for path in SCRIPTS)
    assert set(re.findall(r'byId\("([\w-]+)"\)', source)) <= ids
    icons = set(re.findall(r'\bicon(?:Button)?\(\s*"(\w+)"', source))
    assert icons and {f"i-{name}" for name in icons} <= ids


def test_the_policy_is_strict():
    assert HEADERS["Content-Security-Policy"] == (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types puna dompurify"
    )


def _get(path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Returns the response of the routes to a request, by the ASGI interface."""
    fastapi = pytest.importorskip("fastapi")
    from puna.server.page.routes import router

    app = fastapi.FastAPI()
    app.include_router(router())
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode(),
             "query_string": b"", "headers": lines, "scheme": "http", "server": ("127.0.0.1", 80)}  # fmt: skip
    messages: list[dict] = []

    async def receive() -> dict:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        messages.append(message)

    with ThreadPoolExecutor(1) as thread:  # playwright runs an event loop in this one
        thread.submit(lambda: asyncio.run(app(scope, receive, send))).result()
    head = {name.decode(): value.decode() for name, value in messages[0]["headers"]}
    return messages[0]["status"], head, b"".join(message.get("body", b"") for message in messages[1:])


@pytest.mark.parametrize("path", ["/", "/page/js/main.js", "/page/vendor/dompurify/purify.es.mjs", "/page/icon.svg"])
def test_responses_have_the_headers_and_the_file(path):
    status, headers, body = _get(path)
    assert (status, body, headers["content-type"]) == (200, page_files()[path].body, page_files()[path].content_type)
    for name, value in HEADERS.items():
        assert headers[name.lower()] == value
    assert _get(path, if_none_match=headers["etag"])[0] == 304
    assert _get(path, "HEAD")[:2] == (200, headers)


@pytest.mark.parametrize(
    "path",
    ["/page/", "/page/index.html", "/page/../files.py", "/page/%2e%2e/files.py", "/page//etc/passwd",
     "/page/vendor/SHA256SUMS", "/page/vendor/marked/LICENSE", "/page/js", "/page/js/main.js/", "/index.html"],
)  # fmt: skip
def test_other_paths_do_not_exist(path):
    assert _get(path)[0] == 404


def test_scripts_are_parsed_by_node_if_it_is_installed():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    check = "const { SourceTextModule } = require('vm'); const files = JSON.parse(require('fs').readFileSync(0));"
    check += " for (const [name, text] of files) new SourceTextModule(text, { identifier: name });"
    sources = json.dumps([[path.name, path.read_text()] for path in SCRIPTS])
    subprocess.run(
        [node, "--experimental-vm-modules", "--no-warnings", "-e", check], input=sources, text=True, check=True
    )
