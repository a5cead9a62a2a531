"""What a server takes from its clients, and how long it waits for them."""

from dataclasses import dataclass, fields

from dss_jax.core.checks import at_least

ANY_HOST = "*"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine that are nobody else's."""


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Each has a flag of `dss serve` of the same name.

    Attributes:
      batch_size: most rows that are answered at once.
      max_waiting: most rows in the queue; beyond it, 429.
      max_inputs: most inputs or prompts of one request.
      max_characters: of one input or prompt; of the labels of one row together.
      max_labels: of one row.
      max_tokens: most tokens of a completion.
      max_body: bytes of a request's body.
      max_connections: beyond it, 503.
      client_seconds: for a client to send its request's head, to send its body, or to take an
        answer.
      stop_seconds: after SIGTERM, to answer what was taken.
    """

    batch_size: int = 64
    max_waiting: int = 1024
    max_inputs: int = 256
    max_characters: int = 20_000
    max_labels: int = 100
    max_tokens: int = 1024
    max_body: int = 1_000_000
    max_connections: int = 500
    client_seconds: int = 20
    stop_seconds: int = 30

    def __post_init__(self) -> None:
        for field in fields(self):
            at_least(f"--{field.name}", getattr(self, field.name), 1)
