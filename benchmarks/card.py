"""All that a graphics card is needed for, in one call of under ten minutes; writes one JSON file.

    python benchmarks/card.py --out card.json                 # on the card
    python benchmarks/card.py --out card.json --minutes 4     # what fits; parts that are there stay as they are
    python benchmarks/card.py --tiny --device cpu --out tiny.json      # every part on the processor, in about a minute

Each part (`card_parts`) is a process of its own, so that a fault of the card, a hanging compiler or a full memory ends
that part alone: the error stands in the file, and the others go on. Every result is written as soon as it is there, and
a call that was killed goes on with the parts that are missing. torch, numpy, jaxtyping, safetensors and tokenizers are
enough; what needs more says so. Nothing has to be installed: the repository's own sources are read.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "machine": 40,
    "ceilings": 60,
    "agreement": 90,
    "sampling": 150,
    "synchronisations": 40,
    "first order": 80,
    "precision": 60,
    "gains": 90,
    "devinterp": 120,
    "whole": 60,
}
"""Seconds that each may take at most, what matters most first. All of them together would take longer than a call may:
most end much sooner, and those that are left over at the end are named."""
MARK = "card: "
"""Before each result that a part prints."""


def run_part(name: str, arguments: Sequence[str], seconds: float, keep: Callable[[str, object], None]) -> str:
    """Run a part in a process of its own, for so many seconds at most; returns how it ended.

    Args:
        arguments: of the program, which prints results as `MARK` and a JSON list of a key and a value.
        keep: called with each result as it comes.
    """
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            arguments, stdout=subprocess.PIPE, stderr=said, text=True, env=environment, start_new_session=True
        )
        late = threading.Event()
        timer = threading.Timer(seconds, lambda: (late.set(), _end(process)))
        timer.start()
        try:
            for line in process.stdout:
                if line.startswith(MARK):
                    keep(*json.loads(line.removeprefix(MARK)))
            code = process.wait()
        finally:
            timer.cancel()
            _end(process)
        if late.is_set():
            return f"stopped after {seconds:.0f} s"
        said.seek(0)
        last = " | ".join(said.read().strip().splitlines()[-4:])
        return "finished" if code == 0 else f"failed with exit code {code}: {last[-2000:]}"


def _end(process: subprocess.Popen) -> None:
    """End a process and all that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
    process.wait()


class Report:
    """The JSON file: written anew with every result, whole or not at all."""

    def __init__(self, file: Path, about: dict):
        held = json.loads(file.read_text()) if file.exists() else {}
        if held and held.get("about") != about:
            raise SystemExit(f"error: {file} is of another call ({held.get('about')}): name another file")
        self.file, self.content = file, held or {"about": about, "parts": {}}

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self.content["parts"].get(name, {}).get("ended") == "finished"

    def begin(self, name: str) -> None:
        self.content["parts"][name] = {"ended": "", "results": {}}

    def keep(self, name: str, key: str, value: object) -> None:
        self.content["parts"][name]["results"][key] = value
        self.write()

    def end(self, name: str, ended: str, seconds: float) -> None:
        self.content["parts"].setdefault(name, {"results": {}}).update(ended=ended, seconds=round(seconds, 1))
        self.write()

    def write(self) -> None:
        part = self.file.with_suffix(".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(part, self.file)


def errors(results: object, where: str = "") -> list[str]:
    """What failed inside a part that went on, by its place."""
    if not isinstance(results, dict):
        return []
    own = [f"{where}: {results['error']}"] if "error" in results else []
    return own + [line for key, value in results.items() for line in errors(value, f"{where} {key}".strip())]


def run(report: Report, names: Sequence[str], seconds: float, command: Callable[[str, float], list[str]]) -> bool:
    """Run the parts that are missing while there is time; says how each ended, and whether all went well."""
    begin, well = time.monotonic(), True
    for name in names:
        left = seconds - (time.monotonic() - begin)
        if report.has(name):
            ended = "there already"
        elif left < 5:
            ended = "left out: no time"
            report.end(name, ended, 0.0)
        else:
            limit, started = min(PARTS[name], left), time.monotonic()
            report.begin(name)
            ended = run_part(name, command(name, limit), limit, functools.partial(report.keep, name))
            report.end(name, ended, time.monotonic() - started)
        failed = errors(report.content["parts"][name]["results"])
        print("; ".join([f"{name}: {ended}", *failed]), flush=True)
        well = well and not failed and not ended.startswith("failed")
    return well


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("card.json"), help="the file; parts that it holds stay")
    parser.add_argument("--minutes", type=float, default=9.0, help="no longer than this")
    parser.add_argument("--part", choices=PARTS, action="append", help="only these")
    parser.add_argument("--device", default="", help="cuda, cuda:1 or cpu; by default cuda where there is one")
    parser.add_argument("--tiny", action="store_true", help="a tiny size, to see that every part runs")
    parser.add_argument("--one", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.path.insert(0, str(ROOT))
        from card_parts import RUN, Bench

        bench = Bench.of(options.device, options.tiny, options.seconds)
        for key, value in RUN[options.one](bench):
            print(MARK + json.dumps([key, value]), flush=True)
        return

    def command(name: str, seconds: float) -> list[str]:
        tiny = ["--tiny"] if options.tiny else []
        given = ["--one", name, "--device", options.device, "--seconds", str(seconds)]
        return [sys.executable, str(Path(__file__).resolve()), *given, *tiny]

    report = Report(options.out, {"tiny": options.tiny, "device": options.device})
    well = run(report, options.part or list(PARTS), 60 * options.minutes, command)
    print(f"all of it is in {options.out}")
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
