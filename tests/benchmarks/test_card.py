"""The program for a graphics card, on the processor: every part runs, what it says is true, and nothing is lost."""

import json
import subprocess
import sys
import time
from pathlib import Path

import card
import card_parts
import pytest
import torch
from card_parts import Bench
from conftest import random_gpt_neox

from spectrolib.model.engine import Engine
from spectrolib.model.loading import engine_of
from spectrolib.posterior import sample

TINY = Bench(torch.device("cpu"), True, 4.0)


@pytest.mark.parametrize("name", ["ceilings", "sampling", "synchronisations", "first order", "precision", "gains"])
def test_a_part_runs_at_a_tiny_size_and_its_results_are_json(name):
    found = dict(card_parts.RUN[name](TINY))
    assert found and card.errors(json.loads(json.dumps(found))) == []
    if name == "sampling":
        assert found["bundled, 16: l0h0"]["step"]["tokens_per_second"] > 0
        assert 0 < found["bundled, 16"]["hours"] < 10
    if name == "precision":  # 23, 10 and 7 digits of two
        errors = [found[f"l0h0, {kind}"]["error_of_changes"] for kind in ("float32", "tf32, rounded", "bf16, rounded")]
        assert errors[0] < errors[1] / 5 < errors[2] / 15
        assert errors[0] < 1e-2


def test_a_device_that_computes_otherwise_does_not_agree():
    one = engine_of(random_gpt_neox())
    moved = dict(one.weights)
    name = "gpt_neox.layers.1.mlp.dense_4h_to_h.weight"
    moved[name] = moved[name] * 1.02
    same, other = (dict(card_parts.agreement(TINY, (one, Engine(one.shape, w)))) for w in (one.weights, moved))
    assert card.errors(same) == []
    assert same["agrees"] and max(same["largest"].values()) == 0
    assert not other["agrees"] and other["largest"]["chains"] > card_parts.AGREES
    assert {"losses", "gradients", "chains", "first order"} == set(same["largest"])


def test_noise_of_the_processor_is_the_noise_that_a_chain_has():
    start = torch.zeros(5)
    settings = card_parts.TEAM

    def walk() -> torch.Tensor:
        return list(sample(lambda w: w.square().sum(), settings, start=start))[-1].position.clone()

    plain = walk()
    with card_parts.SameNoise():
        assert torch.equal(walk(), plain)
    assert plain.abs().min() > 0


def test_waits_are_counted_by_their_kind():
    x = torch.ones(3)
    found = card_parts.waits(TINY, lambda: (x.tolist(), x.sum().item(), bool(x.isfinite().all()), x + x))
    assert found["seen"] == 3
    assert sorted(line.split(": ")[1] for line in found["lines"]) == ["__bool__", "item", "tolist"]


def test_products_are_rounded_as_a_card_rounds_them():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(16, 16, generator=generator), torch.randn(16, 16, generator=generator)
    with card_parts.Rounded("bf16"):
        assert torch.equal(a @ b, a.bfloat16().float() @ b.bfloat16().float())
        assert torch.equal(a + b, b + a)
    rounded = card_parts.Rounded("tf32").round(torch.tensor([1 + 2.0**-10, 1 + 2.0**-12, 3.0]))
    assert rounded.tolist() == [1 + 2.0**-10, 1.0, 3.0]


def script(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "part.py").write_text(
        f"import time, json\nsay = lambda *r: print('card: ' + json.dumps(r), flush=True)\n{text}"
    )
    return [sys.executable, str(tmp_path / "part.py")]


@pytest.mark.parametrize(
    ("then", "ended"),
    [
        ("", "finished"),
        ("raise RuntimeError('no such kernel')", "failed with exit code 1"),
        ("import os; os.kill(os.getpid(), 9)", "failed with exit code -9"),
        ("import subprocess; subprocess.Popen(['sleep', '60']); time.sleep(60)", "stopped after 2 s"),
    ],
)
def test_what_a_part_had_found_is_kept_however_it_ends(tmp_path, then, ended):
    found, begin = {}, time.monotonic()
    said = card.run_part(
        "any", script(tmp_path, f"say('a', 1)\nprint('noise')\nsay('b', {{}})\n{then}"), 2.0, found.__setitem__
    )
    assert found == {"a": 1, "b": {}}
    assert said.startswith(ended) and ("no such kernel" in said) == ("kernel" in then)
    assert time.monotonic() - begin < 30


def test_a_repeated_call_makes_what_is_missing_in_the_time_there_is(tmp_path, capsys):
    file, began = tmp_path / "card.json", []

    def command(name: str, seconds: float) -> list[str]:
        began.append(name)
        return script(tmp_path, f"say('of', {name!r})" + ("\nraise SystemExit(3)" if len(began) == 2 else ""))

    assert not card.run(card.Report(file, {}), ["machine", "ceilings", "whole"], 60.0, command)
    assert json.loads(file.read_text())["parts"]["ceilings"]["results"] == {"of": "ceilings"}
    assert card.run(card.Report(file, {}), ["machine", "ceilings", "whole"], 60.0, command)
    assert began == ["machine", "ceilings", "whole", "ceilings"]
    assert card.run(card.Report(file, {}), ["machine", "gains"], 0.0, command)
    assert "machine: there already" in capsys.readouterr().out
    assert json.loads(file.read_text())["parts"]["gains"]["ended"] == "left out: no time"
    with pytest.raises(SystemExit, match="another call"):
        card.Report(file, {"tiny": True})


def test_an_error_inside_a_part_is_named(tmp_path):
    key, value = card_parts.attempt("l0h0", lambda: 1 / 0)
    assert card.errors({key: value, "fine": {"seconds": 1}}) == ["l0h0: ZeroDivisionError: division by zero"]


def test_the_program_itself(tmp_path):
    words = [
        sys.executable,
        card.__file__,
        "--tiny",
        "--device",
        "cpu",
        "--part",
        "machine",
        "--out",
        tmp_path / "c.json",
    ]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    part = json.loads((tmp_path / "c.json").read_text())["parts"]["machine"]
    assert part["ended"] == "finished" and part["results"]["versions"]["torch"] == torch.__version__
