"""How far a measurement has come: a bar in a terminal, else a line for each finished task."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .plan import Plan, Task


class Advance:
    """Progress over draws of single components, or tokens: a bar in a terminal, else a line for each finished task."""

    def __init__(self, bar, total: int, plan: Plan, visible: bool):
        self.bar, self.total, self.plan = bar, total, plan
        self.visible, self.live, self.done, self.begin = visible, False, 0, time.monotonic()

    @contextmanager
    def watching(self, done) -> Iterator[None]:
        """Show the sum of the workers' counts, twice a second."""
        finished, self.live = threading.Event(), True

        def look() -> None:
            while not finished.wait(0.5):
                self.bar.update(self.bar.task_ids[0], completed=sum(done))

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()

    def finished(self, task: Task) -> None:
        self.done += 1
        (row,) = self.bar.tasks
        self.bar.update(row.id, description=f"task {self.done} of {self.total}")
        if not self.live:
            self.bar.advance(row.id, self.plan.amount(task))
        if self.visible and not self.bar.console.is_terminal:
            part, spent = row.completed / row.total, time.monotonic() - self.begin
            left = f", about {spent * (1 / part - 1):.0f} s left" if part > 0 else ""
            print(f"task {self.done} of {self.total}: {task.name}, {spent:.0f} s{left}", file=sys.stderr, flush=True)


@contextmanager
def show_progress(plan: Plan, left: list[Task], visible: bool) -> Iterator[Advance]:
    """Progress over the tasks that are left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True, force_jupyter=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + ("tokens" if plan.first_order else "draws")),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = not (visible and console.is_terminal)
    with Progress(*columns, console=console, disable=hidden, speed_estimate_period=120) as bar:
        bar.add_task(f"task 0 of {len(left)}", total=sum(map(plan.amount, left)))
        yield Advance(bar, len(left), plan, visible)
