"""Files are there whole or not at all."""

import subprocess
import sys

import pytest

from spectrolib.run.files import only_writer, part_of, refusing, write_whole


def test_a_file_bears_its_name_once_it_is_written(tmp_path):
    file = tmp_path / "a.npz"

    def write(part):
        assert part == part_of(file) == tmp_path / "a.part.npz" and not file.exists()
        part.write_text("all of it")

    write_whole(file, write)
    assert file.read_text() == "all of it" and [found.name for found in tmp_path.iterdir()] == ["a.npz"]


def test_what_is_there_stays_where_writing_fails(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("before")

    def half(part):
        part.write_text("ha")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_whole(file, half)
    assert file.read_text() == "before"
    with pytest.raises(ValueError, match=r"a\.json cannot be written: No space left on device"), refusing(file):
        write_whole(file, half)


def test_a_lock_is_seen_by_other_processes_and_ends_with_its_own(tmp_path):
    file = tmp_path / "a"
    file.touch()
    hold = "import sys; from pathlib import Path; from spectrolib.run.files import only_writer\n"
    hold += "with only_writer(Path(sys.argv[1]), 'here'): print('held', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", hold, str(file)], **pipes)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="another process is writing to here"), only_writer(file, "here"):
        pass
    other.kill()  # no chance to tidy up
    other.communicate()
    with only_writer(file, "here"):
        pass
