"""What the commands share: errors of one line, rows, numbers for people."""

import subprocess

from commands import SPECTRO


def test_an_error_of_a_real_process_is_one_line_and_leaves_nothing(tmp_path):
    run = [*SPECTRO, "measure", "--out", str(tmp_path / "run"), "--profile", "none"]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: unknown profile 'none': it must be one of smoke, book, paper\n"
    assert not (tmp_path / "run").exists()
