"""How far a measurement has come: a bar in a terminal, else a few lines.

Tasks are unequal, so progress and the time that is left count operations (`Plan.operations`), at the rate seen so far.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .plan import Plan, Task

SHARE, SECONDS = 0.25, 60.0
"""Where there is no terminal: of all work, and of time, what lies between two lines."""


class Advance:
    """Progress over the operations of some tasks: a bar in a terminal, else a line now and then."""

    def __init__(self, bar, left: list[Task], plan: Plan, visible: bool):
        self.bar, self.left, self.plan, self.visible = bar, left, plan, visible
        self.amounts = [plan.amount(task) for task in left]
        self.each = [plan.operations(task) / amount for task, amount in zip(left, self.amounts, strict=True)]
        """Operations of one draw, or token, of each task."""
        self.live, self.done, self.begin = False, 0, time.monotonic()
        self.said: tuple[float, float] | None = None
        """How far it was, and when, at the last line."""

    def show(self, done) -> None:
        """Show what is done: so many draws, or tokens, of each task."""
        operations = sum(count * each for count, each in zip(done, self.each, strict=True))
        self.bar.update(self.bar.task_ids[0], completed=operations, counted=sum(done))

    @contextmanager
    def watching(self, done) -> Iterator[None]:
        """Show the workers' counts, twice a second."""
        finished, self.live = threading.Event(), True

        def look() -> None:
            while not finished.wait(0.5):
                self.show(done)

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
        number = self.left.index(task)
        self.bar.update(row.id, description=f"task {self.done} of {len(self.left)}")
        if not self.live:
            counted = row.fields["counted"] + self.amounts[number]
            self.bar.update(row.id, advance=self.amounts[number] * self.each[number], counted=counted)
        if self.visible and not self.bar.console.is_terminal:
            self._say(task, row.completed / row.total)

    def _say(self, task: Task, part: float) -> None:
        """A line, unless there was one a moment ago and there is more to come."""
        now = time.monotonic()
        if self.said and self.done < len(self.left):
            before, at = self.said
            if part - before < SHARE and now - at < SECONDS:
                return
        self.said, spent = (part, now), now - self.begin
        left = f", about {spent * (1 / part - 1):.0f} s left" if part > 0 else ""
        print(f"task {self.done} of {len(self.left)}: {task.name}, {spent:.0f} s{left}", file=sys.stderr, flush=True)


@contextmanager
def show_progress(plan: Plan, left: list[Task], visible: bool) -> Iterator[Advance]:
    """Progress over the tasks that are left."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(
        stderr=True, force_jupyter=False, force_terminal=sys.stderr.isatty()
    )  # whatever a kernel asks for
    amount, unit = sum(map(plan.amount, left)), "tokens" if plan.first_order else "draws"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[counted]:,.0f} of " + f"{amount:,.0f} {unit}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = not (visible and console.is_terminal)
    with Progress(*columns, console=console, disable=hidden, speed_estimate_period=120) as bar:
        bar.add_task(f"task 0 of {len(left)}", total=sum(map(plan.operations, left)), counted=0)
        yield Advance(bar, left, plan, visible)
