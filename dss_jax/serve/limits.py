"""What a server takes from its clients, and how long it waits for them."""

from dataclasses import dataclass, field, fields
from typing import Any

from dss_jax.core.checks import at_least

ANY_HOST = "*"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that are nobody else's."""


def _most(default: int, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Each has a flag of `dss serve` of the same name, whose help says what it bounds."""

    batch_size: int = _most(64, "rows that are answered at once")
    max_waiting: int = _most(1024, "rows in the queue; beyond it, 429")
    max_inputs: int = _most(256, "inputs or prompts of a request")
    max_characters: int = _most(20_000, "of an input or prompt; of the labels of a row together")
    max_labels: int = _most(100, "allowed labels of an input")
    max_tokens: int = _most(1024, "tokens of a completion; of the labels of a row together")
    max_body: int = _most(1_000_000, "bytes of a request's body")
    max_connections: int = _most(500, "connections; beyond it, 503")
    client_seconds: int = _most(20, "for a request's head, for its body, or to take an answer")
    stop_seconds: int = _most(30, "after SIGTERM, to answer what was taken")

    def __post_init__(self) -> None:
        for own in fields(self):
            at_least(f"--{own.name}", getattr(self, own.name), 1)
