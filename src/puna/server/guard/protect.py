"""`protect`: puts the middleware of a server around an application."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from starlette.types import ASGIApp, Scope

from puna.server.guard.access_log import OuterMiddleware, write_line
from puna.server.guard.callers import KeyRing
from puna.server.guard.exchange import Exchange
from puna.server.guard.security import OPEN_PATHS, Guard, Policy, check_address, origin_headers
from puna.server.settings import ServerSettings


def make_policy(settings: ServerSettings, open_paths: Iterable[str] = ()) -> Policy:
    """Returns the policy of a server.

    Args:
        settings: the settings of the server.
        open_paths: paths that need no key in addition to the health checks, such as the files of the chat page.

    Raises:
        ConfigError: a key, a host or an origin is invalid, or other machines could use the server without a key.
    """
    keys = KeyRing(settings.keys)
    check_address(settings.host, keys, settings.insecure)
    return Policy(
        keys,
        frozenset(host.lower() for host in settings.allowed_hosts),
        settings.allowed_origins,
        OPEN_PATHS | frozenset(open_paths),
        settings.limits.body_bytes,
        settings.body_seconds,
    )


def protect(
    application: ASGIApp, settings: ServerSettings, policy: Policy, observe: Callable[[Exchange, Scope], None]
) -> ASGIApp:
    """Returns an application inside the checks, the log and the headers of a server.

    Args:
        application: the application.
        settings: the settings of the server.
        policy: which requests are accepted.
        observe: called at the end of each exchange.
    """
    return OuterMiddleware(
        Guard(application, policy),
        None if settings.access_log == "off" else write_line,
        settings.access_log == "json",
        [] if settings.replica is None else [(b"x-puna-replica", settings.replica.encode("ascii", "replace"))],
        partial(origin_headers, policy=policy),
        observe,
    )
