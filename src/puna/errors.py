"""All errors that puna raises for invalid input, damaged files or unsupported machines.

Each message says what was wrong, the value, the limit and the remedy. All derive from `PunaError`, itself a
`ValueError`, so that code written for libraries that raise `ValueError` keeps working. Internal errors of
puna fail an `assert` instead.
"""

import traceback
from collections.abc import Iterable


class PunaError(ValueError):
    """Base class of all puna errors."""


class ConfigError(PunaError):
    """A configuration field has a value that no LLaMA model can have."""


class CheckpointError(PunaError):
    """A checkpoint file is truncated, corrupt or malicious, or does not match its configuration."""


class ShapeError(CheckpointError, RuntimeError):
    """Tensors of a checkpoint have other shapes than those of the model; a RuntimeError, as in transformers."""


class TokenizerError(PunaError):
    """A tokenizer file cannot be read, or a tokenizer does not support the requested operation."""


class TokenizerFeatureError(TokenizerError, NotImplementedError):
    """The class of this tokenizer does not support the requested operation; the message names the class that does."""


class TokenIdError(TokenizerError, IndexError):
    """The vocabulary has no token with this id; an `IndexError` too, as in transformers and SentencePiece."""


class ChatTemplateError(TokenizerError):
    """A chat template is missing, cannot be compiled, or rejects the conversation."""


class RequestError(PunaError):
    """A generation request is too long, or an option is out of range or not supported."""


class DataError(PunaError):
    """Training data cannot be read or used; the message names the file, the line and the remedy."""


class RuleError(RequestError):
    """A schema, an expression or a grammar for answers is invalid, not supported, or too large."""


class ArgumentError(PunaError, TypeError):
    """A function has no argument of this name, or the argument has the wrong type."""


class BackendError(PunaError):
    """An execution backend is unknown, not available here, or does not support the model."""


class ClosedError(BackendError):
    """The model was closed, so that it cannot answer."""


class ModelNotFoundError(PunaError, FileNotFoundError):
    """There is no model at the given path or under the given name."""


class StorageError(PunaError, OSError):
    """A file cannot be written: the disk is full, permission is missing, or a file exists where a folder is needed."""


class TrainingError(PunaError):
    """A training run cannot go on: the loss is not finite, a parameter does not learn, or a state does not match."""


class ServerError(PunaError):
    """A server cannot start: its address is in use, or its settings are not safe."""


class MissingExtraError(PunaError, ImportError):
    """A feature needs an optional dependency; the message names the extra to install."""


class MissingNameError(PunaError, AttributeError):
    """A public name needs an optional dependency; the message names the extra to install.

    `from puna import name` raises a MissingExtraError instead, because Python replaces an AttributeError there by an
    error without its message.
    """


def puna_error(exc: BaseException) -> PunaError:
    """Returns a `PunaError` unchanged, and for any other failure of a model a BackendError with that cause."""
    if isinstance(exc, PunaError):
        return exc
    error = BackendError(
        f"memory is exhausted ({exc or 'the amount is unknown'}); free memory, raise the limit of this process "
        "(ulimit -v), or use a smaller model or a shorter text"
        if isinstance(exc, MemoryError)
        else f"the model failed with {type(exc).__name__}: {exc}"
    )
    error.__cause__ = exc
    return error


def detached_error(exc: BaseException) -> PunaError:
    """Does the same as `puna_error` for an error that another thread raises again, and removes its tracebacks.

    Tracebacks keep the variables of all running functions in memory: the model, and the tensors of a step that may have
    exhausted the memory. The cause of the error shows them as text.
    """
    error = puna_error(exc)
    cause = error.__cause__
    if cause is not None:
        cause.__cause__ = _TracebackText("\n" + "".join(traceback.format_exception(cause)))
        cause.__context__ = cause.__traceback__ = None
    error.__context__ = error.__traceback__ = None
    return error


class _TracebackText(Exception):  # noqa: N818
    """The text of removed tracebacks."""


def show(value: object) -> str:
    """Returns the start of a value's `repr`, for a message."""
    if isinstance(value, int) and abs(value) >= 10**80:
        return "a whole number of more than 80 digits"
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of more than 4,300 digits
        return f"a {type(value).__name__} with a number of thousands of digits"
    return _start(text)


def show_path(path: object) -> str:
    """Returns the `repr` of a path's text, for a message: complete, unless it is longer than systems allow."""
    text = repr(str(path))
    return text if len(text) <= 4096 else f"{text[:4096]}..."


def show_json(value: object) -> str:
    """Returns the start of a JSON value, for a message: texts as `show` does, true and null as in JSON."""
    import json  # only for errors

    if value is None or isinstance(value, bool | list | dict):
        return _start(json.dumps(value, ensure_ascii=False))
    return show(value)


def _start(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."


def first_line(exc: BaseException) -> str:
    """Returns the first line of an exception's text, or the name of its type, for a message."""
    lines = str(exc).strip().splitlines()
    return lines[0][:200] if lines else type(exc).__name__


def show_bytes(count: int) -> str:
    """Returns a number of bytes as bytes, MB or GB (decimal), for a message."""
    if count < 10_000:
        return f"{count} bytes"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def show_count(count: int, noun: str) -> str:
    """Returns a number with a noun, such as "1 row" and "2 rows", for a message."""
    return f"{count:,} {noun}{'s' * (count != 1)}"


def printable(text: str) -> str:
    """Escapes characters other than line ends that a terminal would obey: texts in files are not trusted."""
    return "".join(item if item.isprintable() or item == "\n" else repr(item)[1:-1] for item in text)


def suggestion(name: object, known: Iterable[str]) -> str:
    """Returns "; did you mean ...?" with the name most similar to an unknown one; "" if none is similar."""
    import difflib  # only for errors: the import takes time at the start of every command

    near = difflib.get_close_matches(name, list(known), 1) if isinstance(name, str) else []
    return f"; did you mean {near[0]!r}?" if near else ""
