"""Orders: what a person asks to be done about findings, by id or for all, and who does it.

A node may have findings of its datasets and of the stores that it keeps. **Owns** the question which one is meant, and
that every finding has a result in words: an error about one keeps no other from being repaired.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from replicad.model.divergence import Divergence
from replicad.model.errors import ReplicadError, UsageError
from replicad.model.remedy import remedy_of
from replicad.system.clock import Clock
from replicad.work.mended import Mended
from replicad.work.shelves import Key, Shelves
from replicad.work.tendings import Tendings


@dataclass(frozen=True, slots=True)
class Order:
    """One finding that a person means, and what repairs it or takes its repair back."""

    found: Divergence
    repair: Callable[[bool], Awaitable[Mended]]
    """The flag says whether only to say what would be done."""
    undo: Callable[[], Awaitable[Mended]]


async def meant(prefix: str | None, datasets: Iterable[Tendings], shelves: Shelves | None, clock: Clock) -> list[Order]:
    """Who is to do something about the findings that are meant; None means all that are open.

    A finding of a store on this very node is that store's, though a primary's book here may mirror it. Raises
    UsageError when there is no such finding, or more than one."""
    orders: dict[str, Order] = {}
    for tendings in datasets:
        orders |= {one.id: _of_dataset(tendings, one) for one in await tendings.meant(prefix)}
    if shelves:
        orders |= {one.id: _of_store(shelves, clock, key, one) for key, one in await shelves.meant(prefix)}
    if prefix is not None and (len(orders) != 1 or not prefix):
        text = f"more than one divergence begins with {prefix!r}" if orders else f"there is no divergence {prefix!r}"
        raise UsageError(text, hint="replicad divergence list names them")
    return list(orders.values())


async def close_breakers(datasets: Iterable[Tendings], shelves: Shelves | None) -> None:
    """A person has ordered all repairs: from here on they happen by themselves again, also where nothing is left to be
    repaired by now. Raises ReplicadError when a book cannot be written."""
    for tendings in datasets:
        await tendings.close_breaker()
    if shelves:
        await shelves.close_breakers()


async def repair(orders: Sequence[Order], *, dry_run: bool) -> list[tuple[Divergence, Mended]]:
    """Repair them one after the other, or say what would be done."""
    return [(order.found, await _outcome(order.found, order.repair(dry_run))) for order in orders]


async def undo(orders: Sequence[Order]) -> list[tuple[Divergence, Mended]]:
    """Put back what their last repairs took away."""
    return [(order.found, await _outcome(order.found, order.undo())) for order in orders]


def _of_dataset(tendings: Tendings, found: Divergence) -> Order:
    def repair(dry_run: bool) -> Awaitable[Mended]:
        return tendings.repair(found, dry_run=dry_run)

    return Order(found, repair, partial(tendings.undo, found))


def _of_store(shelves: Shelves, clock: Clock, key: Key, found: Divergence) -> Order:
    def repair(dry_run: bool) -> Awaitable[Mended]:
        return shelves.repair(key, found, dry_run=dry_run, now_ns=clock.now_ns())

    async def undo() -> Mended:
        return Mended(remedy_of(found), "nothing", "a store's repair overwrites nothing: there is nothing to put back")

    return Order(found, repair, undo)


async def _outcome(found: Divergence, work: Awaitable[Mended]) -> Mended:
    try:
        return await work
    except ReplicadError as error:
        return Mended(remedy_of(found), "failed", str(error))
