"""Files are there whole or not at all."""

import pytest

from spectrolib.run.files import part_of, refusing, write_whole


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
