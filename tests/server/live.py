"""A server on a local port, for clients that need a network; and a checkpoint whose chat template has tools."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.golden.files import LAYOUTS

CONTEXT = 8192
"""The context of the checkpoint with tools: coding agents send long prompts."""

TEMPLATE = """{{ bos_token }}{% if tools %}[tools]
{% for tool in tools %}{{ tool.function | tojson }}
{% endfor %}{% endif %}{% for message in messages %}[{{ message.role }}]
{% if message.content %}{{ message.content }}{% endif %}{% for call in message.tool_calls or [] %}<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}
{% endfor %}{% if add_generation_prompt %}[assistant]
{% endif %}"""


def tool_checkpoint(folder: Path) -> Path:
    """Writes the golden checkpoint with a longer context and a chat template with tools; returns its path."""
    path = folder / "tools"
    shutil.copytree(LAYOUTS["hf"], path)
    for name, changes in (
        ("config.json", {"max_position_embeddings": CONTEXT}),
        ("tokenizer_config.json", {"chat_template": TEMPLATE}),
    ):
        document = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps(document | changes))
    return path


@contextlib.contextmanager
def live_server(model: Any, **settings: Any) -> Iterator[str]:
    """Serves an `AsyncLLM` in a thread; yields the server's address, such as http://127.0.0.1:12345."""
    import uvicorn

    from puna.server.app import create_app
    from puna.server.service import Service
    from puna.server.settings import ServerSettings

    chosen = ServerSettings(**{"name": "golden", **settings})
    config = uvicorn.Config(create_app(Service(model, chosen), chosen), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
