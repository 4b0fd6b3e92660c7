"""The files of the chat page and the headers of their responses.

The page is static: conversations are stored in the browser, and the page uses the public API only.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "static"
PREFIX = "/page/"
"""URL prefix of every file except `index.html`, which is served at `/`."""

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
"""Content type by suffix. Files with other suffixes (licences, digests) are in the wheel, but are not served."""

POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data:",
    "font-src": "'self'",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "puna dompurify",
}
"""Content security policy: scripts and styles only from files of this server, and no unsanitised HTML strings."""

DISABLED_FEATURES = ("camera", "microphone", "geolocation", "payment", "usb", "serial", "display-capture")

HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": ", ".join(f"{name}=()" for name in DISABLED_FEATURES),
    "Cache-Control": "no-cache",
}
"""Headers of every response. `no-cache`: the browser may store a file, but checks its ETag before each use."""


@dataclass(frozen=True)
class PageFile:
    """A file of the page, in memory."""

    body: bytes
    content_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """Returns the files by URL path: `/` and `/page/...`. A path that is not in this table does not exist."""
    files = {}
    for path in sorted(FOLDER.rglob("*")):
        content_type = CONTENT_TYPES.get(path.suffix)
        if content_type is None or not path.is_file():
            continue
        name = path.relative_to(FOLDER).as_posix()
        body = path.read_bytes()
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        files["/" if name == "index.html" else PREFIX + name] = PageFile(body, content_type, etag)
    return files
