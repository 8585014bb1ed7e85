"""What one command asks of a judge's server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlaif.config.server import Server


@dataclass(frozen=True)
class EndpointOptions:
    """The user's options of a server, and what a stage adds to them."""

    server: Server
    max_tokens: int = 256
    """Of a reply in free text."""
    temperature: float = 0.0
    cache: str | None = None
    """Folder, or a bucket's URI, in which answers are kept; None: only in memory."""

    def sampling(self, seed: int, first_token: bool) -> dict[str, Any]:
        """Every field of a request but its messages. `first_token`: its log-probs are wanted, and nothing behind it."""
        fields = {
            "model": self.server.model,
            "max_tokens": 1 if first_token else self.max_tokens,
            "temperature": self.temperature,
            "seed": seed,
            **({"logprobs": True, "top_logprobs": self.server.top_logprobs} if first_token else {}),
            **self.server.extra,
        }
        return {name: value for name, value in fields.items() if value is not None}
