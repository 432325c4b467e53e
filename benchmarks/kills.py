"""Kills runs at random moments and fills their disks: each, resumed, must end as one that nobody disturbed.

    python benchmarks/kills.py --kills 60 --disks 20 --output benchmarks/results/kills.json

Over align, finetune, evaluate, screen, repair and a reduced lab build, all on the lab's models. A kill is a SIGKILL,
half of them after a random time and half at a random change to the output folder (a file opened for writing, a rename,
a removal), so that saving is hit often. A full disk is a tmpfs of a random size, which needs the right to mount. Half
of all runs overwrite an earlier run, with somebody's notes and a nested run in its folder.

The same command is then given again. Whatever is in the folder must be, to the byte and timings aside, what an
undisturbed run leaves; everything foreign must be as it was; a full disk must end with exit code 2 and a message.

Run again with the same arguments it goes on where it was. Every run is a process of its own, forked from one that has
imported the libraries.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch

from antibody_llm.cli.main import run
from antibody_llm.files import write_text
from antibody_llm.lab.build import SCALES, Scale
from antibody_llm.lab.rows import build_rows
from antibody_llm.profiles.lab import NUM_ROWS, LabProfile

TRAINED = [*("--train", "max_steps=6", "--train", "save_steps=2", "--train", "save_total_limit=2"), "--batch-size", "4"]
FOREIGN = {
    "notes.txt": "years of work",
    "tuned/config.yaml": "verb: finetune\n",
    "tuned/adapter/weights": "of a run that lies in the folder",
    ".mine": "hidden, and not ours",
}
TIMINGS = ("seconds", "runtime", "per_second", "flos")
TEXTS = (".json", ".jsonl", ".yaml", ".html", ".md", ".txt")
ROOM = "1g"
CANNOT_MOUNT = 3
"""Exit code where no file system can be mounted."""


@dataclass(frozen=True)
class Verb:
    """A command, but for its output.

    Attributes:
        name: For the table.
        words: Of the command line.
        seeded: Whether another --seed makes the earlier run that is overwritten; else another --batch-size does.
        overwrites: Whether it has --overwrite.
    """

    name: str
    words: tuple[str, ...]
    seeded: bool = True
    overwrites: bool = True

    def command(self, output: Path, *, overwrite: bool = False, earlier: bool = False) -> list[str]:
        """Words of the command line; of an ``earlier`` run with another configuration."""
        other = ("--seed", "9") if self.seeded else ("--batch-size", "7")
        flags = [*(other if earlier else ()), *(("--overwrite",) if overwrite else ())]
        return [*self.words, *flags, "--output", str(output)]


def verbs(work: Path) -> list[Verb]:
    upload, anchors = work / "upload.jsonl", []
    write_rows(upload, build_rows("user", 40, seed=3, poison_ratio=0.2).rows)
    for kind in ("anchor-harmful", "anchor-benign"):
        write_rows(work / f"{kind}.jsonl", build_rows(kind, 16, seed=0).rows)
        anchors += [f"--{kind}-data", str(work / f"{kind}.jsonl")]
    return [
        Verb("align", ("align", "--model", "lab", "--num", "48", *anchors, *TRAINED)),
        Verb("finetune", ("finetune", "--model", "lab-aligned", "--num", "48", *TRAINED)),
        Verb("evaluate", ("evaluate", "--model", "lab-aligned", "--num", "12")),
        Verb("screen", ("screen", str(upload), "--model", "lab-aligned"), seeded=False),
        Verb("repair", ("repair", "--model", "lab-aligned", "--defence", "antidote")),
        Verb("lab build", ("lab", "build", "--scale", "speck"), overwrites=False),
    ]


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


# -- one run ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """A run that came to an end.

    Attributes:
        code: Its exit code; minus the signal's number where one ended it.
        said: What it printed.
        seconds: How long it took.
        changes: How often it changed something in its output; 0 where that was not counted.
    """

    code: int
    said: str
    seconds: float
    changes: int


def carried_out(
    command: list[str], work: Path, *, after: float | None = None, at_change: int | None = None, cache: str = "cache"
) -> Ended:
    """Run a command in a child, and kill it ``after`` seconds or ``at_change``.

    The child counts, in a file, how often it opens something for writing, renames, or removes in its output.
    """
    log, counter, output = work / "log", work / "changes", command[-1]
    counter.unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(command, log, counter, output, at_change, work / cache)
    status = None
    while status is None:
        if after is not None and time.monotonic() - started >= after:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        else:
            ended, found = os.waitpid(child, os.WNOHANG)
            status = found if ended else None
            time.sleep(0.001)
    changes = counter.stat().st_size if counter.exists() else 0
    said = log.read_text(encoding="utf-8", errors="replace")
    return Ended(os.waitstatus_to_exitcode(status), said, time.monotonic() - started, changes)


def _child(command: list[str], log: Path, counter: Path, output: str, at_change: int | None, cache: Path) -> None:
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ["ANTIBODY_CACHE"] = str(cache)
        torch.set_num_threads(1)
        _count_changes(counter, output, at_change)
        code = run(command)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        with suppress(BaseException):
            traceback.print_exc()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _count_changes(counter: Path, output: str, at_change: int | None) -> None:
    tally = os.open(counter, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
        if changes and isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(output):
            seen += 1
            os.write(tally, b".")
            if seen == at_change:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


# -- what it leaves --------------------------------------------------------------------------------------------------


def contents(output: Path) -> dict[str, Any]:
    """Every file below a folder, without timings and without the folder's own path."""
    return {
        path.relative_to(output).as_posix(): _content(path, str(output))
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def _content(path: Path, output: str) -> Any:
    if path.suffix == ".safetensors":  # its metadata is written in an order of chance
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        return json.loads(content[8:start]), content[start:]
    if path.suffix not in TEXTS:
        return path.read_bytes()
    text = path.read_text(encoding="utf-8").replace(output, "OUTPUT")
    if path.suffix == ".json":
        with suppress(ValueError):
            return _untimed(json.loads(text))
    if path.name == "metrics.jsonl":
        return [_untimed(json.loads(line)) for line in text.splitlines()]
    text = re.sub(r"\b[mp][0-9a-f]{10}\b", "ID", text)  # matplotlib's, in an SVG
    return re.sub(r"\b\d+ seconds\b", "TIME", text)


def _untimed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: _untimed(inner) for key, inner in value.items() if not any(time in key for time in TIMINGS)}


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return sorted(name for name in {**found, **wanted} if found.get(name) != wanted.get(name))


def put(files: dict[str, str], folder: Path) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


# -- the cases -------------------------------------------------------------------------------------------------------


@dataclass
class Reference:
    """Undisturbed runs of a verb, each made when it is first asked for.

    Attributes:
        verb: The verb.
        work: Where they are made.
        contents: What a new run left.
        seconds: How long it took.
        changes: To its output, by whether it overwrote another run.
    """

    verb: Verb
    work: Path
    contents: dict[str, Any]
    seconds: float
    changes: dict[bool, int]

    @cached_property
    def earlier(self) -> Path:
        """A complete run of another configuration, to be overwritten."""
        output = fresh(self.work / "earlier") / "run"
        require(carried_out(self.verb.command(output, earlier=True), self.work, cache="cache-earlier"), self.verb)
        return output

    @cached_property
    def peak(self) -> int:
        """Most bytes that a new run has on its disk."""
        return measure_peak(self.verb, self.work)

    def changes_of(self, overwrite: bool) -> int:
        """How often a run changes something in its output."""
        if overwrite not in self.changes:
            output = fresh(self.work / "undisturbed") / "run"
            foreign = prepared(output, self.verb, self, overwrite)
            command = self.verb.command(output, overwrite=overwrite)
            self.changes[overwrite] = require(carried_out(command, self.work), self.verb).changes
            if wrong := compared(output, foreign, self):
                sys.exit(f"{self.verb.name}: --overwrite ends otherwise than a new run: {', '.join(wrong)}")
        return self.changes[overwrite]


def make_reference(verb: Verb, work: Path) -> Reference:
    output = fresh(work / "undisturbed") / "run"
    ended = require(carried_out(verb.command(output), work, cache="cache-undisturbed"), verb)
    return Reference(verb, work, contents(output), ended.seconds, {False: ended.changes})


def prepared(output: Path, verb: Verb, reference: Reference, overwrite: bool) -> dict[str, str]:
    """Put what a run finds into its folder's place; returns what is foreign, relative to the parent of ``output``."""
    foreign = {"beside.txt": "not in the folder at all", "other/result.json": "{}"}
    if overwrite:
        shutil.copytree(reference.earlier, output)
    if overwrite or not verb.overwrites:  # lab build makes two folders, among whatever else is there
        foreign |= {f"{output.name}/{name}": text for name, text in FOREIGN.items()}
    put(foreign, output.parent)
    return foreign


def compared(output: Path, foreign: dict[str, str], reference: Reference) -> list[str]:
    """What differs from an undisturbed run with the same foreign files."""
    inside = {name.removeprefix(f"{output.name}/"): name for name in foreign if name.startswith(f"{output.name}/")}
    found = contents(output)
    wrong = differences({name: what for name, what in found.items() if name not in inside}, reference.contents)
    for name, text in foreign.items():
        path = output.parent / name
        if not path.is_file() or path.read_text() != text:
            wrong.append(f"foreign: {name}")
    expected = {"run", "beside.txt", "other"}
    wrong += [f"left behind: {path.name}" for path in output.parent.iterdir() if path.name not in expected]
    return wrong


def require(ended: Ended, verb: Verb) -> Ended:
    if ended.code != 0:
        sys.exit(f"{verb.name}: an undisturbed run ended with {ended.code}:\n{ended.said}")
    return ended


def fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def kill(verb: Verb, reference: Reference, work: Path, number: int, draw: random.Random) -> dict[str, Any]:
    """One SIGKILL, and the same command again."""
    overwrite = verb.overwrites and draw.random() < 0.5
    at_change = number % 2 == 1
    while True:
        shutil.rmtree(work / "cache", ignore_errors=True)
        output = fresh(work / "killed") / "run"
        foreign = prepared(output, verb, reference, overwrite)
        command = verb.command(output, overwrite=overwrite)
        if at_change:
            of: float = reference.changes_of(overwrite)
            when: float = draw.randint(1, int(of))
            ended = carried_out(command, work, at_change=int(when))
        else:
            of = reference.seconds
            when = draw.uniform(0.05, 1.0) * of
            ended = carried_out(command, work, after=when)
        if ended.code == -signal.SIGKILL:  # else it ended before
            break
    again = carried_out(command, work)
    wrong = compared(output, foreign, reference) if again.code == 0 else [f"exit code {again.code}: {again.said}"]
    return {
        "verb": verb.name,
        "overwrite": overwrite,
        "killed": "at a change" if at_change else "after seconds",
        "when": round(when, 3),
        "of": round(of, 3),
        "went_on_from": (re.findall(r"going on from (\S+?)\.\s", again.said) or [None])[0],
        "wrong": wrong,
    }


def fill(verb: Verb, reference: Reference, work: Path, draw: random.Random) -> dict[str, Any]:
    """One full disk, more room, and the same command again."""
    overwrite = verb.overwrites and draw.random() < 0.5
    largest = reference.peak
    while True:
        shutil.rmtree(work / "cache", ignore_errors=True)
        with disk(work / "disk", ROOM) as place:
            output = place / "run"
            foreign = prepared(output, verb, reference, overwrite)
            command = verb.command(output, overwrite=overwrite)
            used = shutil.disk_usage(place).used
            size = int(draw.uniform(0, largest))
            resize(place, str(used + 4096 + size))
            ended = carried_out(command, work)
            if ended.code == 0:  # there was room after all
                largest = size
                continue
            wrong = []
            if ended.code != 2 or "Traceback" in ended.said:
                wrong.append(f"exit code {ended.code}: {ended.said}")
            litter = [path.name for path in place.rglob("*") if re.search(r"\.tmp$|\.staging|\.new-", path.name)]
            wrong += [f"left on the full disk: {name}" for name in litter]
            resize(place, ROOM)
            again = carried_out(command, work)
            wrong += compared(output, foreign, reference) if again.code == 0 else [again.said]
            lines = [line for line in ended.said.splitlines() if "Error" in line] or [ended.said]
            return {
                "verb": verb.name,
                "overwrite": overwrite,
                "kilobytes": round(size / 1024),
                "said": lines[-1].replace(str(place), "DISK"),
                "wrong": wrong,
            }


@contextmanager
def disk(place: Path, size: str) -> Iterator[Path]:
    """A file system of its own."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def resize(place: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


def measure_peak(verb: Verb, work: Path) -> int:
    """Most bytes that a new run has on its disk."""
    with disk(work / "disk", ROOM) as place:
        child = os.fork()
        if child == 0:
            _child(verb.command(place / "run"), work / "log", work / "changes", str(place), None, work / "cache-peak")
        peak = 0
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            peak = max(peak, shutil.disk_usage(place).used)
            time.sleep(0.002)
    return peak


def can_mount(work: Path) -> bool:
    try:
        with disk(work / "disk", "64k"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--disks", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, help="the .json file")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "antibody-kills", help="scratch")
    parser.add_argument("--small", action="store_true", help="fewer of the lab's own rows, as in the tests")
    given = parser.parse_args()
    work: Path = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if given.disks and not can_mount(work):
        print("no file system can be mounted here; as root, or with --disks 0, this can run.", file=sys.stderr)
        sys.exit(CANNOT_MOUNT)
    if given.small:
        NUM_ROWS.update(dict.fromkeys(("alignment", "harmful", "benign", "anchor-harmful", "anchor-benign"), 32))
    SCALES["speck"] = Scale(hidden=32, layers=1, steps=12, learning_rate=1e-3)
    LabProfile.calibration = lambda *key: ({}, {"max_steps": 4, "save_steps": 2})  # type: ignore[method-assign]
    results = _earlier(given)
    cases: list[tuple[str, int, Verb]] = []
    everything = verbs(work)
    for kind, num in (("kills", given.kills), ("disks", given.disks)):
        cases += [(kind, number, everything[number % len(everything)]) for number in range(num)]
    references: dict[str, Reference] = {}
    for kind, number, verb in sorted(cases, key=lambda case: everything.index(case[2])):
        if any(row["number"] == number for row in results[kind]):
            continue
        place = work / verb.name.replace(" ", "-")
        if verb.name not in references:
            references = {verb.name: make_reference(verb, place)}
        reference = references[verb.name]
        draw = random.Random(f"{given.seed} {kind} {number}")
        if kind == "kills":
            row = kill(verb, reference, place, number // len(everything), draw)
        else:
            row = fill(verb, reference, place, draw)
        results[kind] = sorted([*results[kind], {"number": number, **row}], key=lambda row: row["number"])
        write_text(given.output, json.dumps(results, indent=1) + "\n")
        print(f"{kind} {number}: {json.dumps(row)}", flush=True)
    bad = [row for kind in ("kills", "disks") for row in results[kind] if row["wrong"]]
    print(f"{len(results['kills'])} kills, {len(results['disks'])} full disks, {len(bad)} of them with differences")
    sys.exit(1 if bad else 0)


def _earlier(given: argparse.Namespace) -> dict[str, Any]:
    """The results so far, where they are of the same arguments."""
    wanted = {"seed": given.seed, "small": given.small, "torch": torch.__version__}
    with suppress(OSError, ValueError, LookupError):
        stored: dict[str, Any] = json.loads(given.output.read_text())
        if stored["made_with"] == wanted:
            return stored
    return {"made_with": wanted, "kills": [], "disks": []}


if __name__ == "__main__":
    main()
