"""One request to a teacher, and the key under which its reply is kept."""

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dss_jax.records.records import Reply


@dataclass(frozen=True, slots=True)
class Job:
    """One request: a sample of a row.

    Attributes:
      id: of the row.
      sample: index of the sample, from 0.
      body: what is sent, as the OpenAI protocol has it: `model`, `messages` or `prompt`, sampling
        parameters. Holds no key and no address.
    """

    id: str
    sample: int
    body: Mapping[str, Any]

    @property
    def key(self) -> str:
        """SHA-256, in hex, of model, prompt, sampling parameters and sample index."""
        content = json.dumps([self.body, self.sample], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


Send = Callable[[Mapping[str, Any]], Awaitable[Reply]]
"""Sends one body, once; raises what `dss_jax.teacher.client` says."""
