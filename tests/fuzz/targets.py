"""The readers under atheris, which looks for bytes that take new ways through them: `make fuzz`.

    python -m tests.fuzz.targets [NAME …] [--seconds 600] [--folder build/fuzz]

Each target runs in a process of its own and begins with a whole file and with what earlier runs found. Whatever is
neither read nor refused in words ends it, and the file that did so lies in the folder: give it a test, then mend it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

_LIMITS = ("-rss_limit_mb=3072", "-timeout=60", "-max_len=32768", "-print_final_stats=0")


def _fuzz(name: str, seconds: int, folder: Path) -> None:
    """In the process of one target; does not come back."""
    import atheris

    with atheris.instrument_imports(include=["invert_fast"], enable_loader_override=False):
        from invert_fast import InputError

        from .readers import READERS

    reader, corpus = READERS[name], folder / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "whole").write_bytes(reader.whole)
    place = folder / "work" / name
    place.mkdir(parents=True, exist_ok=True)
    path = place / reader.name

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with suppress(InputError):
            reader.read(path)
        if [entry.name for entry in place.iterdir()] != [reader.name]:
            raise RuntimeError(f"files were written beside it: {[*place.iterdir()]}")

    found = folder / f"{name}-"
    atheris.Setup([sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-artifact_prefix={found}", *_LIMITS], read)
    atheris.Fuzz()


def main() -> int:
    from .readers import READERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(READERS)} (default: all)")
    parser.add_argument("--seconds", type=int, default=600, metavar="N", help="of each (default 600)")
    parser.add_argument(
        "--folder", type=Path, default=Path("build/fuzz"), help="for what is found (default build/fuzz)"
    )
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in READERS]:
        parser.error(f"{unknown[0]} is unknown, expected some of {', '.join(READERS)}")
    failed = []
    for name in args.names or READERS:
        print(f"{name}: {args.seconds} s", flush=True)
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.targets", name, "--seconds", str(args.seconds)]
        environment = {**os.environ, _INSIDE: name, "TQDM_DISABLE": "1"}
        log = args.folder / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as said:
            done = subprocess.run([*command, "--folder", str(args.folder)], env=environment, stdout=said, stderr=said)
        if done.returncode:
            print("\n".join(log.read_text(errors="replace").splitlines()[-25:]))
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing was found")
    return int(bool(failed))


_INSIDE = "INVERT_FAST_FUZZ_TARGET"

if __name__ == "__main__":
    if name := os.environ.get(_INSIDE):
        options = argparse.ArgumentParser()
        options.add_argument("name")
        options.add_argument("--seconds", type=int)
        options.add_argument("--folder", type=Path)
        given = options.parse_args()
        _fuzz(name, given.seconds, given.folder)
    sys.exit(main())
