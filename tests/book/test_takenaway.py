"""Every line of the figure is in the file, and stands where the file says."""

import pytest

from spectrobook import shipped_table, takenaway


def test_every_line_ships():
    measured = shipped_table("resolved")
    for group, names in takenaway.GROUPS.items():
        for name in names:
            found = takenaway.line(measured, group, name)
            value, low, high = found["come back"]
            assert 0 <= low <= value <= high <= 1
            assert len(found["clusters"]) == 2
    assert "neighbours" not in takenaway.line(measured, "No components (gradients)", "the token alone")


def test_what_is_left_is_drawn_beside_what_was_there():
    measured = shipped_table("resolved")
    fig = takenaway.figure(measured)
    names = [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert names == [name for group, lines in takenaway.GROUPS.items() for name in (group, *lines)]
    drawn = {round(float(y)): float(x) for bars in fig.axes[0].containers for x, y in bars.lines[0].get_xydata()}
    for name, (part, rows) in takenaway.GROUPS["No training (gradients)"].items():
        (found,) = [row for row in measured[part] if row["rows"] == rows]
        assert drawn[names.index(name)] == pytest.approx(found["come back"][0])
    assert set(drawn) == {i for i, name in enumerate(names) if name not in takenaway.GROUPS}
