"""Fuzz every reader of files for as long as it is let: new spoilt files in every round, the same for the same ``--seed``.

    python benchmarks/fuzz.py --minutes 10

An error that a reader does not document, a hang of 20 s or 2 GiB of memory more is a finding: it is printed with its file's
bytes kept in ``--findings``, and the exit code is 1. The readers and the ways to spoil their files are those of
tests/unit/test_fuzz.py (tests/readers.py).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from readers import READERS, Reader

ROUND = 50  # files of a reader before the next one's turn


@dataclass
class Tally:
    """What became of one reader's files."""

    files: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    findings: int = 0

    @property
    def read(self) -> int:
        """Files that were read: what was spoilt decides nothing, or is no damage (a comment, another number)."""
        return self.files - self.refused - self.findings


def spoil(reader: Reader, folder: Path, whole: bytes, seed: int, tally: Tally, keep: Path) -> None:
    """Try one round of spoilt files."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=ROUND,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(reader.spoil(whole))
    def attempts(content: bytes) -> None:
        started = time.perf_counter()
        tally.files += 1
        try:
            tally.refused += reader.attempt(folder, content)
        except Exception:
            tally.findings += 1
            keep.mkdir(parents=True, exist_ok=True)
            (keep / f"{seed}-{tally.files}-{Path(reader.file).name}").write_bytes(content)
            print(keep, file=sys.stderr)
            traceback.print_exc()
        tally.slowest_s = max(tally.slowest_s, time.perf_counter() - started)

    attempts()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(READERS), action="append", help="a reader; may be given several times")
    parser.add_argument(
        "--findings", type=Path, default=Path("fuzz_findings"), help="folder for the files that broke a reader"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    logging.raiseExceptions = False
    os.environ["TQDM_DISABLE"] = "1"
    tallies = {name: Tally() for name in options.only or READERS}
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as scratch:
        files = {}
        for number, name in enumerate(tallies):
            folder = Path(scratch, f"{number}")
            folder.mkdir()
            READERS[name].write(folder)
            files[name] = folder, (folder / READERS[name].file).read_bytes()
        seed = options.seed
        while time.monotonic() < end:
            for name, tally in tallies.items():
                spoil(READERS[name], *files[name], seed, tally, options.findings / name)
                if time.monotonic() > end:
                    break
            seed += 1
    print(f"{'reader':<22} {'files':>8} {'refused':>8} {'read':>8} {'slowest s':>10} {'findings':>9}")
    for name, tally in tallies.items():
        print(
            f"{name:<22} {tally.files:>8} {tally.refused:>8} {tally.read:>8} {tally.slowest_s:>10.2f} {tally.findings:>9}"
        )
    if options.json:
        content = {"minutes": options.minutes, "readers": {name: asdict(tally) for name, tally in tallies.items()}}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return int(any(tally.findings for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
