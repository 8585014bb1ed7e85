"""Tokens and money that questions may take."""

from __future__ import annotations

import asyncio

from rlaif.config.server import Server
from rlaif.feedback.chat_request import EndpointOptions
from rlaif.feedback.chat_response import Usage


def cost(server: Server, used: Usage) -> float | None:
    """Return the price of some tokens, in the unit of `cost_budget`; None without prices."""
    input_price, output_price = server.price_per_million
    if not (input_price or output_price):
        return None
    return (used.prompt_tokens * input_price + used.completion_tokens * output_price) / 1e6


class Budget:
    """Counts used tokens and reserves room for open requests.

    The usage of a request is unknown until it is answered. Until then it counts as the largest so far, with at least
    `max_tokens` of output, so that only a request larger than all before it can exceed the budget. The first request
    goes alone.
    """

    def __init__(self, options: EndpointOptions, used: Usage):
        self.used = used
        self._server = options.server
        self._largest = Usage(0, options.max_tokens)
        self._limited = options.server.token_budget is not None or options.server.cost_budget is not None
        self.begin()

    def begin(self) -> None:
        """Prepare for another event loop. No request may be open."""
        # A condition belongs to the event loop that first waits on it, and every `ask_many` has a loop of its own.
        self._open, self._changed = 0, asyncio.Condition()

    def note(self, used: Usage) -> None:
        """Take the usage of one request into account for the largest so far; it may be of an earlier run."""
        self._largest = Usage(
            max(self._largest.prompt_tokens, used.prompt_tokens),
            max(self._largest.completion_tokens, used.completion_tokens),
        )

    async def reserve(self) -> str:
        """Reserve room for one request, after waiting for open ones that may leave some.

        Returns why there is no room, or "" if it was reserved.
        """
        async with self._changed:
            # Without open requests nothing can change any more, so there is nothing to wait for.
            while self._open and (self._excess(self._open + 1) or self._unknown):
                await self._changed.wait()
            if reason := self._excess(self._open + 1):
                return reason
            self._open += 1
        return ""

    async def settle(self, used: Usage | None) -> None:
        """Release the room of one request and count its usage; None means unknown and counts as the largest so far."""
        async with self._changed:
            self._open -= 1
            self.used = self.used.plus(self._largest if used is None else used)
            self.note(used or Usage())
            self._changed.notify_all()

    @property
    def _unknown(self) -> bool:
        """Whether there is a limit and no request has shown yet how many tokens a prompt takes."""
        return self._limited and not self._largest.prompt_tokens

    def _excess(self, requests: int) -> str:
        """Return which budget so many open requests could exceed, or ""."""
        # Every open request may turn out to be as large as the largest so far.
        server, need = self._server, self.used.plus(self._largest, requests)
        if server.token_budget is not None and need.total > server.token_budget:
            return f"token_budget: {self.used.total} of {server.token_budget} tokens used"
        if server.cost_budget is not None and cost(server, need) > server.cost_budget:
            return f"cost_budget: {cost(server, self.used):.4f} of {server.cost_budget:.4f} used"
        return ""
