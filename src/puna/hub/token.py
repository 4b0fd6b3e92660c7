"""The hub's token, and its older name in transformers."""

from __future__ import annotations

import warnings

from puna.errors import RequestError


def choose_token(token: str | bool | None, use_auth_token: str | bool | None) -> str | bool | None:
    """Returns the hub's token; `use_auth_token` is the older name of `token`.

    Raises:
        RequestError: both are given.

    Warns:
        FutureWarning: if the older name is used.
    """
    if use_auth_token is None:
        return token
    warnings.warn("use_auth_token is deprecated; its new name is token", FutureWarning, stacklevel=3)
    if token is not None:
        raise RequestError("token and use_auth_token, its older name, are both given; keep token")
    return use_auth_token
