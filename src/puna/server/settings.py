"""`ServerSettings`: the settings of a server, and `Limits`: the maximum sizes of requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from puna.server.guard.admission import AdmissionSettings


@dataclass(frozen=True)
class Limits:
    """Maximum sizes of requests; `puna serve --max-NAME` changes each. A larger request is refused.

    Attributes:
        body_bytes: bytes of a request's body.
        depth: nested arrays and objects of the body.
        n: answers to one prompt, and candidates of best_of.
        prompts: prompts, or inputs, of one request.
        messages: messages of a conversation.
        parts: parts of one message.
        tools: tools of a request.
        stops: stop strings of a request.
        stop_characters: characters of one stop string.
        logprobs: most likely tokens returned at each position; the engine computes at most 20.
        logit_bias: entries of logit_bias.
        token_ids: entries of stop_token_ids, allowed_token_ids and bad_words.
        rule_characters: characters of a regular expression or a grammar for an answer. A schema may have 256 KiB.
        tokens: tokens of one answer; None leaves only the context as a limit.
    """

    body_bytes: int = 4_000_000
    depth: int = 64
    n: int = 8
    prompts: int = 256
    messages: int = 4096
    parts: int = 1024
    tools: int = 256
    stops: int = 16
    stop_characters: int = 1024
    logprobs: int = 20
    logit_bias: int = 4096
    token_ids: int = 4096
    rule_characters: int = 65_536
    tokens: int | None = None


@dataclass(frozen=True)
class ServerSettings:
    """The settings of a server.

    Attributes:
        host, port: the address to listen on.
        keys: (name, key) pairs of the API keys; if there are none, requests need no key.
        insecure: whether other machines may use the server without a key.
        allowed_hosts: host names that the header Host may have in addition to the server's address and localhost.
        allowed_origins: origins of web pages of other sites that may use the server; "*" means all.
        body_seconds: maximum time until the body of a request has arrived.
        request_seconds: maximum time of a request, not counting the time in the queue.
        admission: limits of concurrent requests.
        access_log: format of the log, which has one line for each request.
        metrics_alias: second prefix of all metrics, such as "vllm".
        replica: name of this server in the header X-Puna-Replica; None sends none.
        unknown_fields: "refuse" answers 400 to a request with an unknown top-level field; "warn" lists the field in the
            header X-Puna-Ignored.
        trust_request_chat_template: whether a request may have its own chat template, in the field chat_template.
        limits: maximum sizes of requests.
        ping_seconds: time without events after which a stream sends a comment, so that proxies keep the connection.
        slow_reader_seconds: time after which a stream whose client reads nothing is ended.
        drain_seconds: time that running requests have to finish after SIGTERM.
        name: the model's name in requests and responses; None means the name of the model's file or folder.
        adapters: paths of adapters by the adapters' names in requests.
        warm: file of prompts that are read into the prefix cache when the server starts.
        lazy_compile: on a GPU, compile the steps of a number of sequences when a request first needs them, while all
            answers wait, instead of before the server is ready.
        options: further arguments of `AsyncLLM`.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    keys: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    insecure: bool = False
    allowed_hosts: frozenset[str] = frozenset()
    allowed_origins: frozenset[str] = frozenset()
    body_seconds: float = 60.0
    request_seconds: float = 1800.0
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    access_log: Literal["lines", "json", "off"] = "off"
    metrics_alias: str | None = None
    replica: str | None = None
    unknown_fields: Literal["refuse", "warn"] = "refuse"
    trust_request_chat_template: bool = False
    limits: Limits = Limits()
    ping_seconds: float = 15.0
    slow_reader_seconds: float = 60.0
    drain_seconds: float = 30.0
    name: str | None = None
    adapters: Mapping[str, str] = field(default_factory=dict)
    warm: Path | None = None
    lazy_compile: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """Number of requests that the engine runs at the same time: `max_batch`."""
        slots: int = self.options.get("max_batch", 16)
        return slots
