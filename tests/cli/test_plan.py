"""`spectro plan`: what the cost model says, in words and in one-line errors."""

import json
import re
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from spectrobook import scale
from spectrolib import cli
from spectrolib.model import shapes
from spectrolib.run import cost
from spectrolib.run.workers import available_cores


def work(model: str = "pythia-14m", tokens: int = 20_000, **changes) -> cost.Work:
    return cost.Work(shapes.PYTHIA[model], tokens, **changes)


def spectro(*arguments) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.app, ["plan", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_says_what_the_numbers_say():
    options = ("--model", "pythia-1.4b", "--tokens", "4.25M", "--draws", 100, "--chains", 4, "--steps", 160, "--plain")
    code, out, error = spectro(*options, "--card", "H200", "--precision", "bf16", "--json")
    assert (code, error) == (0, "")
    found = json.loads(out)
    expected = work("pythia-1.4b", 4_250_000, settings=replace(scale.PUBLISHED.settings, burn_in=16))
    expected = replace(expected, settings=replace(expected.settings, step_size=1e-4, preconditioner="rmsprop"))
    assert found["operations"] == pytest.approx(cost.operations(expected))
    assert found["tokens"] == 4_250_000 and found["components"] == 410 and found["tasks"] == 27 * 4
    assert found["hours"]["measured"] is False
    assert sum(found["operations_by_activity"].values()) == pytest.approx(found["operations"])
    assert sum(found["operations_by_kind"].values()) == pytest.approx(found["operations"])

    code, out, error = spectro(*options, "--card", "h200", "--precision", "bf16")
    assert (code, error) == (0, "")
    text = re.sub(r"\s+", " ", out)
    assert "4,250,000 probe tokens" in text and "No card was measured" in text
    assert f"{found['hours']['assumed']:,.0f} h on one H200 in bf16, assuming 33% of its limit" in text
    assert f"It fits with passes of {found['fit']['tokens_per_pass']:,} tokens" in text
    assert "extrapolated" in text
    assert re.search(rf"^time +about .* on {available_cores()} cores of this machine$", out, re.M)
    here = found["processor"]
    assert here["seconds"] == cost.processor_seconds(found["operations"], here["cores"])
    assert here["cores"] == available_cores()

    text = re.sub(r"\s+", " ", spectro("--model", "bundled", "--tokens", "20_480")[1])
    assert "20,480 probe tokens" in text and "teams of 4" in text and "extrapolated" not in text
    assert "It fits" not in text and "does not fit" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--model": "opt-125m"}, "no shape is known of model 'opt-125m': give one of pythia-14m"),
        ({"--tokens": "many"}, "'many' is no count: write it like 20000, 20k or 4.25M"),
        ({"--tokens": "0.5"}, "'0.5' is no count"),
        ({"--card": "abacus"}, "unknown card 'abacus': it must be one of h200"),
        ({"--precision": "fp8"}, "unknown precision 'fp8': it must be one of float32, tf32, bf16"),
        ({"--efficiency": "0"}, "efficiency must be a share above 0 and up to 1, got 0.0"),
        ({"--length": "1"}, "length must be at least 2"),
        ({"--draws": "0"}, "draws must be an integer of at least 1, got 0"),
    ],
)
def test_bad_input_is_one_line(options, message):
    given = {"--model": "pythia-14m", "--tokens": "20k"} | options
    code, out, error = spectro(*(part for pair in given.items() for part in pair))
    assert (code, out) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
