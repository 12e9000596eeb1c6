"""What is shown of the efficiency benchmark: numbers and lines of a report that is planted, and of the shipped one."""

from spectrobook import noise, shipped_table


def test_halves_share_no_document_and_every_domain():
    domains, documents = list("aaaaabbbb"), ["1", "1", "2", "3", "4", "1", "2", "2", "2"]
    one, other = noise.document_halves(domains, documents)
    assert sorted([*one, *other]) == list(range(9))
    told = lambda rows: {(domains[i], documents[i]) for i in rows}  # noqa: E731
    assert told(one) == {("a", "1"), ("a", "3"), ("b", "1")}
    assert told(other) == {("a", "2"), ("a", "4"), ("b", "2")}


def test_curves_are_those_of_the_report():
    rows = [
        {"estimator": name, "curve": {"seconds": [50.0, 500.0 + i], "reliability": [0.1, 0.9]}}
        for i, name in enumerate(noise.CURVES)
    ]
    lines = noise.reliability_curves(rows).axes[0].get_lines()[: len(noise.CURVES)]
    assert [line.get_xdata()[1] for line in lines] == [500.0 + i for i in range(len(noise.CURVES))]
    assert [line.get_label() for line in lines] == [word for word, *_ in noise.CURVES.values()]


def test_gains_in_words():
    row = {"estimator": "two_chain_quads", "seconds": 7.21, "seconds_low": 5.16, "seconds_high": 10.1}
    other = row | {"estimator": "moment_quads"}
    (found,) = noise.gain_rows([row, other])
    assert list(found.values()) == ["two-chain, teams", "7.2 (5.2 to 10)"]


def test_settings_show_every_cell_that_passed():
    zero = {"value": 1.01, "low": 0.9, "high": 1.0}
    cell = {"component": "l3h1", "gamma": 300.0, "passed": True, "rise": 0.1}
    grid = [cell | {"nbeta": 0.0}, cell | {"nbeta": 10.0, "zero": zero}, cell | {"nbeta": 30.0, "passed": False}]
    left, right = noise.settings_figure(grid).axes
    drawn = [line for line in left.get_lines() if len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in drawn] == [[3.0, 10.0]]
    assert 1.01 in [y for line in right.get_lines() for y in line.get_ydata()]


def test_the_shipped_report_has_what_is_shown():
    bench = shipped_table("efficiency")
    assert set(noise.CURVES) <= {row["estimator"] for row in bench["rows"]}
    assert len(noise.gain_rows(bench["gains"])) == 4
    noise.settings_figure(bench["grid"])
