"""`application`: replicas of a server behind Ray Serve, which sends the turns of a conversation to one replica.

Not used by `puna serve`. Ray Serve handles connections, routing and restarts; each replica has the
application of `puna.server.app` with all its checks. Needs the extra `ray`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.types import ASGIApp

from puna.errors import ConfigError
from puna.server.app import create_app
from puna.server.service import Service
from puna.server.settings import ServerSettings

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
"""Chooses the replica by the header X-Session-Id; the next one, if that replica accepts no more requests."""


def application(
    model: str | Path,
    settings: ServerSettings,
    *,
    replicas: int = 1,
    cpus: int = 1,
    router: str = _ROUTER,
    router_options: Mapping[str, Any] | None = None,
) -> serve.Application:
    """Returns an application for `serve.run` or `serve run MODULE:NAME`.

    Args:
        model: path of the model, which must exist on every machine of the cluster.
        settings: settings of each replica. Ray Serve sets the host and the port. A replica without a name of its own
            sends Ray's name in the header X-Puna-Replica.
        replicas: number of replicas.
        cpus: CPUs that Ray reserves for each replica, and its number of threads.
        router: path of the class that chooses a replica for each request.
        router_options: keyword arguments of the router.

    Raises:
        ConfigError: there are no keys, and `settings.insecure` is false.
    """
    if not settings.keys and not settings.insecure:
        raise ConfigError(
            "Ray Serve may listen at an address that other machines can use; give keys in ServerSettings(keys=...), or "
            "accept the risk with ServerSettings(insecure=True)"
        )
    settings = replace(settings, options={"threads": cpus, **settings.options})

    def build() -> ASGIApp:
        return _build(model, settings)

    deployment = serve.deployment(
        name="puna",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": cpus},
        # The queue of each replica answers 429 with Retry-After; Ray must not hold requests back before that.
        max_ongoing_requests=settings.slots + settings.admission.queue + 1,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        request_router_config=RequestRouterConfig(
            request_router_class=router, request_router_kwargs=dict(router_options or {})
        ),
    )
    return deployment(serve.ingress(build)()).bind()


def _build(model: str | Path, settings: ServerSettings) -> ASGIApp:
    """Returns the application of a replica when its model has been loaded."""
    if settings.replica is None:
        settings = replace(settings, replica=serve.get_replica_context().replica_id.unique_id)
    service = Service(model, settings)
    service.load_in_thread().join()
    if service.error is not None:
        raise service.error
    return create_app(service, settings)
