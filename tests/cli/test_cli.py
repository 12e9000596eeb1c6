"""The command line as a whole."""

from commands import spectro

import spectrolib


def test_the_version_is_that_of_the_package():
    assert spectro("--version") == (0, f"spectro {spectrolib.__version__}\n", "")
