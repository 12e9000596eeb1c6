"""Sample what is missing, and print the tables: ``python benchmarks/efficiency FOLDER``."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a folder, it is in no package

import efficiency
from efficiency.grid import cells
from efficiency.report import plain_numbers, report, show
from efficiency.runs import bundled_work, sample


def main() -> None:
    parser = argparse.ArgumentParser(description=efficiency.__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the cells")
    parser.add_argument("--report", action="store_true", help="sample nothing")
    parser.add_argument("--run", type=Path, help="a finished run whose reliability is added")
    parser.add_argument("--json", type=Path, help="write the report here")
    arguments = parser.parse_args()
    work = bundled_work()
    if not arguments.report:
        sample(arguments.folder, work, cells())
    found = plain_numbers(report(arguments.folder, work, arguments.run))
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
