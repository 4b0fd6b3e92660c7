"""API keys, and the caller of a request, who is identified by a key."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puna.errors import ConfigError
from puna.files import read_file

MIN_KEY, MAX_KEY = 8, 512
"""Limits of a key's length in characters. Shorter keys can be guessed; longer ones are probably files by mistake."""

_FILE_LIMIT = 1 << 20

_KEY = re.compile(r"[!-~]+")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True)
class Caller:
    """Who sent a request.

    Attributes:
        name: the name of the key, for the log and for the fair queue; never the key itself.
        salt: separates the cached prefixes of this caller from those of others; "" shares them.
    """

    name: str = "anonymous"
    salt: str = ""

    def namespace(self, salt: str) -> str:
        """Returns the salt of a request, in the namespace of this caller."""
        return hashlib.sha256(f"{self.salt}\0{salt}".encode()).hexdigest() if self.salt else salt


class KeyRing:
    """The configured API keys, of which only digests are stored.

    Args:
        keys: pairs of a name and a key.

    Raises:
        ConfigError: a key is too short, too long or not printable ASCII, or two keys or two names are equal.
    """

    def __init__(self, keys: Iterable[tuple[str, str]] = ()) -> None:
        self._digests: list[tuple[bytes, Caller]] = []
        pairs = list(keys)
        for name, key in pairs:
            _check_key(name, key)
            # The salt is derived from the key, so that it is the same after a restart and cannot be guessed.
            salt = hashlib.sha256(b"puna cache namespace\0" + key.encode()).hexdigest()
            self._digests.append((_digest(key.encode()), Caller(name, salt if len(pairs) > 1 else "")))
        for kind, values in (
            ("have the same name", [name for name, _ in pairs]),
            ("are equal", [key for _, key in pairs]),
        ):
            if len(set(values)) < len(values):
                raise ConfigError(f"two API keys {kind}; remove or rename one")

    def __bool__(self) -> bool:
        return bool(self._digests)

    def identify(self, presented: Iterable[bytes]) -> Caller | None:
        """Returns the caller who has one of these keys, or None.

        All digests are compared, each in constant time: the time depends neither on the key nor on its position.
        """
        caller = None
        for key in presented:
            digest = _digest(key)
            for stored, candidate in self._digests:
                if hmac.compare_digest(digest, stored):
                    caller = candidate
        return caller


def read_keys(path: Path | None, variable: str | None) -> list[tuple[str, str]]:
    """Returns the (name, key) pairs in a file, one per line, and in an environment variable, separated by commas.

    A line is a key, or a name and a key separated by spaces. Empty lines and lines that begin with # are ignored. Keys
    without a name are named key-1, key-2 and so on.

    Raises:
        ConfigError: the file has no key, or a line has more than two words.
    """
    lines: Sequence[str] = (variable or "").replace(",", "\n").splitlines()
    if path is not None:
        text = read_file(path, ConfigError, _FILE_LIMIT).decode("utf-8", "replace")
        file_lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        if not file_lines:
            raise ConfigError(f"{path} contains no API key; write one key per line, or omit --api-key-file")
        lines = [*file_lines, *lines]
    pairs = []
    for number, line in enumerate((line for line in lines if line.strip()), 1):
        words = line.split()
        if len(words) > 2:
            raise ConfigError(f"API key {number} has {len(words)} words; write a key, or a name and a key")
        pairs.append((f"key-{number}" if len(words) == 1 else words[0], words[-1]))
    return pairs


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _check_key(name: str, key: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError("the name of an API key must have 1 to 64 letters, digits, dots, underscores or hyphens")
    if not MIN_KEY <= len(key) <= MAX_KEY or not _KEY.fullmatch(key):
        raise ConfigError(
            f"the API key {name} must have {MIN_KEY} to {MAX_KEY} printable ASCII characters without spaces, and has "
            f"{len(key)} characters; `openssl rand -hex 24` prints a good one"
        )
