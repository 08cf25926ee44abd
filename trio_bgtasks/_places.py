"""Bounds on concurrent background attempts: who has a place, who waits for one."""

from __future__ import annotations

from collections import deque

import attrs
import trio


@attrs.define(eq=False)
class Ticket:
    """One attempt's claim to a place; ``granted`` is set when it has one."""

    owner_thread_id: str
    granted: trio.Event = attrs.field(factory=trio.Event)


class Places:
    """Places per owner and in all. First come, first served per owner; owners take turns.

    Attributes:
        bounded: Is there any bound at all?
    """

    def __init__(self, per_owner: int | None, total: int | None) -> None:
        self.bounded = per_owner is not None or total is not None
        self._per_owner = per_owner
        self._total = total
        self._held: dict[str, int] = {}
        self._held_total = 0
        self._waiting: dict[str, deque[Ticket]] = {}
        # Owners that have somebody waiting and are below their own bound, in turn.
        self._ready: dict[str, None] = {}

    def claim(self, owner_thread_id: str) -> Ticket:
        """Return a ticket, granted at once if a place is free and nobody waits for it."""
        ticket = Ticket(owner_thread_id)
        self._waiting.setdefault(owner_thread_id, deque()).append(ticket)
        self._grant(owner_thread_id)
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Give the place, or the claim to one, back."""
        owner = ticket.owner_thread_id
        if ticket.granted.is_set():
            self._held_total -= 1
            self._held[owner] -= 1
            if not self._held[owner]:
                del self._held[owner]
        else:
            self._waiting[owner].remove(ticket)
            if not self._waiting[owner]:
                del self._waiting[owner]
                self._ready.pop(owner, None)
        self._grant(owner)

    def _grant(self, owner: str) -> None:
        if owner in self._waiting and self._below_own_bound(owner):
            self._ready.setdefault(owner)
        while self._ready and (self._total is None or self._held_total < self._total):
            owner = next(iter(self._ready))
            del self._ready[owner]
            queue = self._waiting[owner]
            queue.popleft().granted.set()
            self._held_total += 1
            self._held[owner] = self._held.get(owner, 0) + 1
            if not queue:
                del self._waiting[owner]
            elif self._below_own_bound(owner):
                self._ready[owner] = None

    def _below_own_bound(self, owner: str) -> bool:
        return self._per_owner is None or self._held.get(owner, 0) < self._per_owner
