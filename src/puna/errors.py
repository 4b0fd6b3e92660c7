"""Every error a user can meet.

Each message says what was wrong, the value, the limit and the remedy. All derive from `PunaError`, itself a
`ValueError`, so that code written against libraries that raise `ValueError` keeps working. Broken promises between our
own rooms are `assert`s, not these.
"""


class PunaError(ValueError):
    """Base of every error puna raises on purpose."""


class ConfigError(PunaError):
    """A configuration field has a value that no LLaMA model can have."""


class CheckpointError(PunaError):
    """A checkpoint file is truncated, corrupt, hostile, or does not fit its configuration."""


class TokenizerError(PunaError):
    """A tokenizer file cannot be read, or a tokenizer is asked for something it cannot do."""


class ChatTemplateError(TokenizerError):
    """A chat template is missing, cannot be compiled, or refuses the conversation."""


class RequestError(PunaError):
    """A generation request that cannot be served: too long, or with an option out of range."""


class BackendError(PunaError):
    """An execution backend is unknown, unavailable here, or lacks something this model needs."""


class ModelNotFoundError(PunaError, FileNotFoundError):
    """No model at the given place."""


class StorageError(PunaError, OSError):
    """A file cannot be written: no space, no permission, or a file where a folder is needed."""


class MissingExtraError(PunaError, ImportError):
    """A feature needs an optional dependency; the message names the extra that brings it."""
