"""Programs that tests start in a process group of their own, as a terminal does, and interrupt."""

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def started(command: Sequence) -> Iterator[subprocess.Popen]:
    """A program that hears Ctrl-C, whoever started the tests; nothing of its group outlives the test."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    listening = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=listening)
    try:
        yield process
    finally:
        if group_lives(process):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def press_ctrl_c(process: subprocess.Popen) -> None:
    """Interrupt all processes of the group."""
    os.killpg(process.pid, signal.SIGINT)


def group_lives(process: subprocess.Popen) -> bool:
    """Whether a process of the group is left."""
    process.poll()  # else the leader stays for us to ask about
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True
