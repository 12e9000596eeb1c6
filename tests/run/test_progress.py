"""Progress: a line for each finished task where there is no terminal, the sum of the workers' counts where there is."""

import re
from types import SimpleNamespace

from spectrolib.run.plan import Task
from spectrolib.run.progress import show_progress

TASKS = [Task(("l0h0", "l0h1"), 0), Task(("embed",), 1)]
PLAN = SimpleNamespace(first_order=False, amount=lambda task: 5 * len(task.components))


def test_each_finished_task_is_one_line_and_counts_its_draws(capsys):
    with show_progress(PLAN, TASKS, visible=True) as advance:
        (row,) = advance.bar.tasks
        assert row.total == 15
        advance.finished(TASKS[0])
        assert row.completed == 10
        advance.finished(TASKS[1])
        assert row.completed == 15 and row.description == "task 2 of 2"
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"task 1 of 2: layer0\.chain0, \d+ s, about \d+ s left", first)
    assert re.fullmatch(r"task 2 of 2: embed\.chain1, \d+ s, about 0 s left", second)


def test_nothing_is_said_where_nothing_is_wanted(capsys):
    with show_progress(PLAN, TASKS, visible=False) as advance:
        advance.finished(TASKS[0])
    assert capsys.readouterr() == ("", "")


def test_counts_of_workers_take_the_place_of_those_of_tasks():
    with show_progress(PLAN, TASKS, visible=False) as advance, advance.watching([4, 2]):
        assert advance.live
        advance.finished(TASKS[0])
        assert advance.bar.tasks[0].completed in (0, 6)  # of what the workers have counted, whenever it is looked at
