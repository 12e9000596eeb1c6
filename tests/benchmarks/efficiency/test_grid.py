"""The cells of the efficiency benchmark."""

from efficiency.grid import Cell, cells


def test_cells_have_names_of_their_own():
    names = [cell.name for cell in cells()]
    assert len(set(names)) == len(names)
    members = [member.nbeta for member in Cell("full", 10.0, 300.0, "six", 1, 1).members]
    assert members == [20, 0, 20, 0, 10, 10]
