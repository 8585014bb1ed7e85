"""Tokens and money that questions may take."""

from __future__ import annotations

import asyncio

from rlaif.config.server import Server
from rlaif.feedback.chat_request import EndpointOptions
from rlaif.feedback.chat_response import Usage


def cost(server: Server, used: Usage) -> float | None:
    """In money; None without prices."""
    of_input, of_output = server.price_per_million
    priced = of_input or of_output
    return (used.prompt_tokens * of_input + used.completion_tokens * of_output) / 1e6 if priced else None


class Budget:
    """Counts what was used and reserves room for open requests.

    What a request will use is unknown until it is answered. It counts as the largest so far, `max_tokens` at least, so
    that only a request that is larger than all before it can pass the budget. The first one goes alone.
    """

    def __init__(self, options: EndpointOptions, used: Usage):
        self.used = used
        self._server, self._largest = options.server, Usage(0, options.max_tokens)
        self._limited = options.server.token_budget is not None or options.server.cost_budget is not None
        self.begin()

    def begin(self) -> None:
        """For use in another event loop; no request is open."""
        self._open, self._changed = 0, asyncio.Condition()

    def seen(self, used: Usage) -> None:
        """What a request used, be it in another run."""
        self._largest = Usage(
            max(self._largest.prompt_tokens, used.prompt_tokens),
            max(self._largest.completion_tokens, used.completion_tokens),
        )

    async def reserve(self) -> str:
        """Take room for one request, waiting for open ones where they may leave some. Why there is none, or ""."""
        async with self._changed:
            while self._open and (self._excess(self._open + 1) or self._unknown):
                await self._changed.wait()
            if reason := self._excess(self._open + 1):
                return reason
            self._open += 1
        return ""

    async def settle(self, used: Usage | None) -> None:
        """Give the room back for what was used; None: unknown, so that the largest so far counts."""
        async with self._changed:
            self._open -= 1
            self.used = self.used.plus(self._largest if used is None else used)
            self.seen(used or Usage())
            self._changed.notify_all()

    @property
    def _unknown(self) -> bool:
        return self._limited and not self._largest.prompt_tokens

    def _excess(self, requests: int) -> str:
        server, need = self._server, self.used.plus(self._largest, requests)
        if server.token_budget is not None and need.total > server.token_budget:
            return f"token_budget: {self.used.total} of {server.token_budget} tokens used"
        if server.cost_budget is not None and cost(server, need) > server.cost_budget:
            return f"cost_budget: {cost(server, self.used):.4f} of {server.cost_budget:.4f} used"
        return ""
