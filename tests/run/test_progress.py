"""Progress: a few lines where there is no terminal, the sum of the workers' counts where there is."""

import re
from dataclasses import replace
from types import SimpleNamespace

from spectrolib.run.plan import Plan, Task
from spectrolib.run.progress import show_progress

TASKS = [Task(("l0h0", "l0h1"), 0), Task(("embed",), 1)]
PLAN = SimpleNamespace(
    first_order=False,
    amount=lambda task: 5 * len(task.components),
    operations=lambda task: {"l0h0": 70.0, "embed": 30.0}[task.components[0]],
)


def test_each_finished_task_is_one_line_and_counts_its_draws(capsys):
    with show_progress(PLAN, TASKS, visible=True) as advance:
        (row,) = advance.bar.tasks
        assert row.total == 100
        advance.finished(TASKS[0])
        assert row.completed == 70 and row.fields["counted"] == 10
        advance.finished(TASKS[1])
        assert row.completed == 100 and row.fields["counted"] == 15 and row.description == "task 2 of 2"
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"task 1 of 2: layer0\.chain0, \d+ s, about \d+ s left", first)
    assert re.fullmatch(r"task 2 of 2: embed\.chain1, \d+ s, about 0 s left", second)


def test_many_tasks_are_few_lines_and_no_bar_whatever_a_kernel_asks_for(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as every Jupyter kernel does
    clock = iter(range(1000))
    monkeypatch.setattr("spectrolib.run.progress.time.monotonic", lambda: float(next(clock)))
    many = [Task((name, str(number)), 0) for name in ("l0h0", "embed") for number in range(40)]
    with show_progress(PLAN, many, visible=True) as advance:
        for task in many:
            advance.finished(task)
    said = capsys.readouterr().err
    numbers = [int(line.split()[1]) for line in said.splitlines()]
    assert "\x1b" not in said and "\r" not in said
    assert numbers[0] == 1 and numbers[-1] == 80 and len(numbers) <= 7


def test_a_slow_measurement_says_something_every_minute(capsys, monkeypatch):
    clock = iter(range(0, 100000, 61))
    monkeypatch.setattr("spectrolib.run.progress.time.monotonic", lambda: float(next(clock)))
    many = [Task(("embed", str(number)), 0) for number in range(30)]
    with show_progress(PLAN, many, visible=True) as advance:
        for task in many:
            advance.finished(task)
    assert len(capsys.readouterr().err.splitlines()) == 30


def test_nothing_is_said_where_nothing_is_wanted(capsys):
    with show_progress(PLAN, TASKS, visible=False) as advance:
        advance.finished(TASKS[0])
    assert capsys.readouterr() == ("", "")


def test_counts_of_workers_take_the_place_of_those_of_tasks():
    with show_progress(PLAN, TASKS, visible=False) as advance, advance.watching([4, 2]):
        assert advance.live
        advance.finished(TASKS[0])
        assert advance.bar.tasks[0].completed in (0, 4 * 7 + 2 * 6)  # by what the workers count, once it is looked at


def test_the_time_that_is_left_counts_the_work_of_unequal_tasks(capsys, monkeypatch):
    clock = iter([0.0, 7.0, 10.0])
    monkeypatch.setattr("spectrolib.run.progress.time.monotonic", lambda: next(clock))
    with show_progress(PLAN, TASKS, visible=True) as advance:
        advance.finished(TASKS[0])  # seven tenths of the work, two thirds of the draws
    assert "7 s, about 3 s left" in capsys.readouterr().err


def test_the_operations_of_a_plan_are_those_of_its_tasks(bundled):
    plan = Plan.from_profile("smoke", model=bundled, components=("embed", "l5h0"))
    by_name = {task.components: plan.operations(task) for task in plan.tasks}
    assert by_name["full",] > by_name["embed",] > by_name["l5h0",] > 0
    half = replace(plan.tasks[0], windows=(0, len(plan.probe) // 2))
    assert plan.operations(plan.tasks[0]) / 2 < plan.operations(half) < plan.operations(plan.tasks[0])
