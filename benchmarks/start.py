"""What a kernel's start costs, caged and not: to the first cell's end, cold and prepared, one and sixteen at once.

`make bench`, or `python benchmarks/start.py --quick` to see that it works. Each figure is the median of some rounds.
"""

# mypy: disable-error-code="import-not-found"
from __future__ import annotations

import argparse
import asyncio
import time
from statistics import median
from typing import get_args

import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from rlm_graph.errors import IsolationError
from rlm_graph.kernel.isolation import Isolation, settled
from rlm_graph.kernel.session import KernelOptions, Session, start_session

FACTS = {"window": None, "reset_answer": False}
AT_ONCE = (1, 16)


async def first_cell(session: Session) -> None:
    await session.run(0, "print(1)", facts=FACTS)


async def cold(options: KernelOptions) -> Session:
    session = await start_session(options, name="bench")
    await first_cell(session)
    return session


async def timed(options: KernelOptions, many: int) -> tuple[float, float, float]:
    """Seconds to the end of the first cell, from nothing and from a started kernel, and megabytes of an idle one."""
    begun = time.perf_counter()
    fresh = await asyncio.gather(*[cold(options) for _ in range(many)])
    from_nothing = time.perf_counter() - begun
    own = median(memory(session) for session in fresh)
    await asyncio.gather(*[session.close() for session in fresh])
    ready = await asyncio.gather(*[start_session(options, name="bench") for _ in range(many)])
    begun = time.perf_counter()
    await asyncio.gather(*[first_cell(session) for session in ready])
    prepared = time.perf_counter() - begun
    await asyncio.gather(*[session.close() for session in ready])
    return from_nothing, prepared, own


def memory(session: Session) -> float:
    """Megabytes that the kernel and its launcher have to themselves."""
    family = [psutil.Process(session.pid), *psutil.Process(session.pid).children(recursive=True)]
    return sum(each.memory_full_info().uss for each in family) / 1e6


async def main(rounds: int) -> None:
    table = Table(box=box.SIMPLE, title="A kernel's start, to the end of its first cell")
    for column in ("isolation", "at once", "cold, s", "prepared, s", "memory of one, MB"):
        table.add_column(column, justify="left" if column == "isolation" else "right")
    for isolation in (name for name in get_args(Isolation) if name not in ("auto", "gateway")):
        try:
            settled(isolation)
        except IsolationError as error:
            table.add_row(isolation, "", str(error)[:60])
            continue
        for many in AT_ONCE:
            options = KernelOptions(isolation=isolation)
            figures = [await timed(options, many) for _ in range(rounds)]
            from_nothing, prepared, own = (median(column) for column in zip(*figures, strict=True))
            table.add_row(isolation, str(many), f"{from_nothing:.2f}", f"{prepared:.3f}", f"{own:.0f}")
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, to see that it works")
    asyncio.run(main(1 if parser.parse_args().quick else 5))
