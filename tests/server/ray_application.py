"""Three replicas behind Ray Serve, until the input ends: python -m tests.server.ray_application MODEL PORT ROUTER.

Ray starts a cluster on this machine, or uses the one that RAY_ADDRESS names.
"""

from __future__ import annotations

import sys

import ray
from ray import serve

from puna.server.ray_serve import application
from puna.server.settings import ServerSettings

if __name__ == "__main__":
    model, port, router = sys.argv[1:]
    ray.init(log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
    settings = ServerSettings(name="m", insecure=True, options={"threads": 1})
    options = {"router": f"ray.serve.experimental.{router}"} if router else {}
    serve.run(application(model, settings, replicas=3, cpus=0, **options))
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
