"""Stop commands at random moments, go on, and compare what is there in the end with an undisturbed run.

    python bench/kill_campaign.py [--signal KILL|INT] [--times 50] [--seed 0] [--commands NAME …] [--folder DIR]

Each of `capture`, `invert`, `fit`, `prepare` and `logits extract` is stopped `--times` times at a random moment of its
work, one time in three twice in a row, and then run to its end, with `--resume` where it has that. What is asked for:

* nothing under an output's name is ever half of a file, and nothing else is left beside it;
* in the end it is what an undisturbed run writes: the same bytes; of `invert` the same lines, each once, in any order,
  and but for the seconds and forward tokens that a text took, and the last digits of residuals (other texts beside it);
* lines that were there when it was stopped are there, byte for byte;
* after SIGINT: exit status 130, one line, no traceback.

Results are kept in DIR line by line (the campaign itself goes on where it was stopped); a table is printed.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from killing import Commands, Ended

TEXTS = (
    "The password is hunter2.",
    "Meet me at a quarter past nine.",
    "",
    "def total(rows): return sum(rows)",
    "x",
    "She asked whether the results could be repeated.",
    "The ferry leaves at half past six, so we packed the night before and left the keys with the neighbour.",
    "Your refund of $412.75 was sent today.",
)
_VARIES = ("seconds", "forward_tokens", "residual", "margin")


@dataclass(frozen=True)
class Command:
    """One command. argv: given a folder to write in; resume: what is added to go on; read: what it made, to be
    compared; kept: whether what was there when it was stopped is still there."""

    name: str
    argv: Callable[[Path], list[str]]
    read: Callable[[Path], dict]
    resume: tuple[str, ...] = ()
    kept: Callable[[Path, bytes], bool] = field(default=lambda folder, before: True)


def commands(inputs: Path) -> list[Command]:
    """All of them; inputs: the folder with the prompts, and the states that were captured of them."""
    prompts, states = str(inputs / "prompts.txt"), str(inputs / "states.safetensors")
    model = ["--model", "bundled"]
    simulated = ["--simulate", '{"top": 20}', "--prompt", "The river was"]
    return [
        Command("capture", lambda f: ["capture", *model, "--input", prompts, "--output", str(f / "o")], _bytes),
        Command(
            "invert",
            lambda f: ["invert", *model, states, "--output", str(f / "o"), "--batch-size", "1"],
            _lines,
            ("--resume",),
            lambda f, before: _whole_lines(before) <= _whole_lines((f / "o").read_bytes()),
        ),
        Command("fit", lambda f: ["fit", *model, "--steps", "24", "--output", str(f / "o")], _bytes),
        Command("prepare", lambda f: ["prepare", *model, "--layer", "2", "--states-dtype", "bfloat16"], _bytes),
        Command(
            "logits extract",
            lambda f: ["logits", "extract", *model, *simulated, "--output", str(f / "o")],
            _bytes,
            ("--resume",),
        ),
    ]


def _bytes(folder: Path) -> dict:
    """Every file by name, those of the cache folder too, but for what is swept there when it is old, and locks."""
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    passing = tuple(name for name in files if name.startswith("cache/") and name.endswith((".partial", ".lock")))
    return {name: path.read_bytes() for name, path in files.items() if name not in passing}


def _whole_lines(output: bytes) -> set[bytes]:
    """Without the last one, where it was not written to its end."""
    return set(output[: output.rfind(b"\n") + 1].splitlines())


def _lines(folder: Path) -> dict:
    """The lines of a recovered.jsonl by index; each may be there once."""
    rows = [json.loads(line) for line in (folder / "o").read_text(encoding="utf-8").splitlines()]
    found = {row["index"]: {name: value for name, value in row.items() if name not in _VARIES} for row in rows}
    others = [name for name in _bytes(folder) if name != "o" and not name.startswith("cache/")]
    return {"lines": found, "count": len(rows), "others": others}


def trial(server: Commands, command: Command, wanted: dict, seconds: float, rng: random.Random, number: int) -> dict:
    """Stop it, go on, compare; what was seen, with `wrong` empty where all is well."""
    wrong: list[str] = []
    stopped = []
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder, before = Path(name), b""
        (folder / "cache").mkdir()
        argv = command.argv(folder)
        for _ in range(rng.choice((1, 1, 2))):
            ended = server.run(argv, folder / "cache", number, rng.uniform(0, seconds))
            stopped.append(ended.status)
            wrong += _stopped_badly(ended, number)
            output = folder / "o"
            if command.kept is not Command.__dataclass_fields__["kept"].default and output.exists():
                before = output.read_bytes()
            argv = [*command.argv(folder), *command.resume]
            ended_well = not command.resume and (ended.status == 0 or output.exists())  # stopped after its last write
            if ended_well:
                break
        if not ended_well:
            last = server.run(argv, folder / "cache")
            if last.status != 0:
                wrong.append(f"the run to the end: status {last.status}: {last.said[-300:]}")
        if not wrong:
            found = command.read(folder)
            wrong += [f"{key} differs" for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)]
            if not command.kept(folder, before):
                wrong.append("lines that were there are not")
    return {"command": command.name, "signal": signal.Signals(number).name, "stopped": stopped, "wrong": wrong}


def _stopped_badly(ended: Ended, number: int) -> list[str]:
    if "Traceback" in ended.said or "Exception ignored" in ended.said:
        return [f"a traceback: {ended.said[-500:]}"]
    if ended.status not in (0, 1, -number if number == signal.SIGKILL else 130):
        return [f"status {ended.status}: {ended.said[-300:]}"]
    return []


def campaign(names: list[str] | None, number: int, times: int, seed: int, kept: Path) -> list[dict]:
    """All trials that are not in the file `kept` yet; returns all that then are."""
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    done = {(row["command"], row["signal"], row["trial"]) for row in rows}
    with tempfile.TemporaryDirectory(prefix="kill-") as name, kept.open("a") as out:
        folder = Path(name)
        server = Commands(folder)
        for made in ("inputs", "cache"):
            (folder / made).mkdir()
        (folder / "inputs" / "prompts.txt").write_text("\n".join(TEXTS * 8) + "\n", encoding="utf-8")
        captured = folder / "inputs" / "states.safetensors"
        first = ["capture", "--model", "bundled", "--input", str(folder / "inputs" / "prompts.txt")]
        server.run([*first, "--output", str(captured)], folder / "cache")
        for command in commands(folder / "inputs"):
            if names and command.name not in names:
                continue
            left = [n for n in range(times) if (command.name, signal.Signals(number).name, n) not in done]
            if not left:
                continue
            wanted, seconds = undisturbed(server, command)
            for n in left:
                rng = random.Random(f"{seed} {command.name} {number} {n}")
                row = trial(server, command, wanted, seconds, rng, number) | {"trial": n, "seconds": round(seconds, 2)}
                out.write(json.dumps(row) + "\n")
                out.flush()
                rows.append(row)
                for each in row["wrong"]:
                    print(f"{command.name}, trial {n}: {each}", file=sys.stderr)
    return rows


def undisturbed(server: Commands, command: Command) -> tuple[dict, float]:
    """What it makes, and how long it takes."""
    with tempfile.TemporaryDirectory(prefix="kill-") as name:
        folder = Path(name)
        (folder / "cache").mkdir()
        ended = server.run(command.argv(folder), folder / "cache")
        assert ended.status == 0, ended
        return command.read(folder), ended.seconds


def table(rows: list[dict]) -> str:
    """In Markdown: a line a command and signal."""
    lines = ["| command | signal | trials | stopped | at their end before | wrong |", "|---|---|---|---|---|---|"]
    for key in dict.fromkeys((row["command"], row["signal"]) for row in rows):
        mine = [row for row in rows if (row["command"], row["signal"]) == key]
        stops = [status for row in mine for status in row["stopped"]]
        late = sum(status in (0, 1) for status in stops)
        wrong = sum(bool(row["wrong"]) for row in mine)
        lines.append(f"| `{key[0]}` | {key[1]} | {len(mine)} | {len(stops) - late} | {late} | {wrong} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signal", choices=("KILL", "INT"), default="KILL")
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", metavar="NAME")
    parser.add_argument("--folder", type=Path, default=Path("build"))
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    number = getattr(signal, f"SIG{args.signal}")
    rows = campaign(args.commands, number, args.times, args.seed, args.folder / "kill_campaign.jsonl")
    print(table(rows))
    return int(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
