"""Whether a change of the code has changed a number: small runs of a base commit and of the working tree, compared.

    python benchmarks/golden.py BASE [--keep DIR] [--only NAME,...] [--json]

BASE is any commit. Its ``src`` and the working tree's are run on this machine, by this interpreter, on one CPU thread,
because floats differ between processors and library versions: no hash that is stored anywhere would hold. Every run is
a process of its own that goes through the command line, so that it works across a renaming of the package and any
change of the Python API, and the same numbers must come out: of weights every bit of every tensor, of tables every
value of every row, of JSON every value. Left out are timings,
paths and warnings (``TIMINGS``, ``PATHS``, ``TEXTS``), config.yaml, environment.json, reports for people and the
tokenizer's files.

With ``--keep DIR`` the runs stay in DIR, under what decides them (sources, command, interpreter, libraries, processor),
so that a second comparison carries out only what changed. The base and the working tree never share a run, even where
their sources are the same: comparing a commit with itself shows that the runs are deterministic.

Exit code 0: all the same. 1: a difference; the first file, tensor or row of each run and its size are printed. 2: a run
failed, or BASE is no commit.
"""

import argparse
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "safetensors", "numpy")
PATHS = {"output", "model"}
"""Keys of JSON objects that hold a path, or a model's name as it was given."""
TIMINGS = {"seconds"}
TEXTS = {"warnings"}
"""Keys that hold sentences for people."""
SAID = 3
"""Lines of a failed run's message that are printed."""


@dataclass(frozen=True)
class Run:
    """One command of ``antibody``, written to the folder ``name``; ``after`` names the run whose output it reads."""

    name: str
    arguments: str
    after: str | None = None

    def command(self) -> list[str]:
        """The arguments after the program's name."""
        return shlex.split(self.arguments)


_TUNE = "finetune --model lab-aligned --regime full --num 48 --poison-ratio 0.25 --epochs 2 --batch-size 8"
_ALIGN = "align --model lab --epochs 1 --batch-size 8"
RUNS = (
    Run("align-antibody-lora", f"{_ALIGN} --num 64 --defence antibody --regime lora"),
    Run("align-antibody-full", f"{_ALIGN} --num 64 --defence antibody --regime full"),
    Run("align-tar", f"{_ALIGN} --num 32 --defence tar --regime full --set every=2 --set inner_steps=2"),
    Run("finetune-antibody", f"{_TUNE} --defence antibody"),
    Run("finetune-bds", f"{_TUNE} --defence bds"),
    Run("finetune-lisa", f"{_TUNE} --defence lisa"),
    Run("finetune-ema", f"{_TUNE} --defence ema"),
    Run("finetune-antibody-posterior", f"{_TUNE} --defence antibody-posterior --task novel"),
    Run("upload", "lab data --kind user --num 64 --poison-ratio 0.25 --output upload/upload.jsonl"),
    Run("screen", "screen upload/upload.jsonl --model lab-aligned", after="upload"),
    Run("repair-antidote", "repair --model finetune-antibody --defence antidote", after="finetune-antibody"),
    Run("evaluate", "evaluate --model finetune-antibody --num 16", after="finetune-antibody"),
)
"""``upload`` only makes the file that ``screen`` reads; ``evaluate`` adds judged completions to the ten."""


@dataclass(frozen=True)
class Difference:
    """The first difference that a file shows."""

    file: str
    where: str
    base: str
    tree: str
    size: float | None = None
    """Largest absolute difference of what is named, where that can be said."""

    def __str__(self) -> str:
        size = "" if self.size is None else f", largest difference {self.size:.3g}"
        return f"{self.file}: {self.where}: {self.base} in the base, {self.tree} here{size}"


@dataclass
class Compared:
    """What a run looks like on both sides."""

    name: str
    num_files: int = 0
    num_values: int = 0
    """Tensors, columns and JSON values that were compared."""
    differences: list[Difference] = field(default_factory=list)


class RunFailed(Exception):
    """A command of a tree did not end with exit code 0."""


# -- running -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tree:
    """Sources to run: the folder that holds ``src``, and what identifies them."""

    root: Path
    label: str

    @property
    def package(self) -> str:
        """The name under which this tree's package is imported: the one that has a command line."""
        found = sorted(path.parts[-3] for path in (self.root / "src").glob("*/cli/main.py"))
        if len(found) != 1:
            raise RunFailed(f"{self.label}: one package with cli/main.py is needed in src, found {found or 'none'}.")
        return found[0]

    def digest(self) -> str:
        """SHA-256 over the sources, names and contents."""
        return _digest(
            part
            for path in sorted((self.root / "src").rglob("*"))
            if path.is_file() and "__pycache__" not in path.parts
            for part in (str(path.relative_to(self.root)), path.read_bytes())
        )


def base_tree(commit: str, folder: Path) -> Tree:
    """The sources of a commit, in ``folder``.

    An archive and not a ``git worktree``: a process that is killed leaves nothing registered in the repository.
    """
    named = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}").decode().strip()
    with tarfile.open(fileobj=BytesIO(_git("archive", named, "src"))) as archive:
        archive.extractall(folder, filter="data")
    return Tree(folder, named[:12])


def carry_out(tree: Tree, side: str, runs: Sequence[Run], keep: Path) -> Path:
    """Run what is not there yet; returns the folder that holds one folder per run.

    Raises:
        RunFailed: a command failed, with the last lines that it printed.
    """
    folder = keep / f"{side}-{tree.label}-{_setting(tree)[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        marker = folder / f"{run.name}.done"
        command = [sys.executable, "-P", "-m", f"{tree.package}.cli.main", *run.command()]
        if "--output" not in command:
            command += ["--output", run.name]
        written = " ".join(command[1:])
        if marker.is_file() and marker.read_text(encoding="utf-8") == written and not _changed(run, folder, marker):
            continue
        marker.unlink(missing_ok=True)
        shutil.rmtree(folder / run.name, ignore_errors=True)
        if "/" in command[-1]:
            (folder / command[-1]).parent.mkdir(exist_ok=True)
        started = time.monotonic()
        print(f"{side:4} {run.name} ...", end="", file=sys.stderr, flush=True)
        # The cache of evidence belongs to this run alone: what another run, or the other tree, read must not be found.
        cache = folder / f"{run.name}.cache"
        done = subprocess.run(command, cwd=folder, env=_environment(tree, cache), capture_output=True, text=True)
        shutil.rmtree(cache, ignore_errors=True)
        print(f" {time.monotonic() - started:.0f} s", file=sys.stderr)
        if done.returncode != 0:
            said = "\n  ".join(done.stderr.strip().splitlines()[-SAID:])
            raise RunFailed(f"{side} ({tree.label}), {run.name}: exit code {done.returncode}\n  {said}")
        marker.write_text(written, encoding="utf-8")
    return folder


def _changed(run: Run, folder: Path, marker: Path) -> bool:
    """Whether the run that this one reads was made after it."""
    if run.after is None:
        return False
    before = folder / f"{run.after}.done"
    return not before.is_file() or before.stat().st_mtime_ns > marker.stat().st_mtime_ns


def _environment(tree: Tree, cache: Path) -> dict[str, str]:
    """One thread, no network, no GPU, and this tree's package before any that is installed."""
    return {
        **os.environ,
        "PYTHONPATH": str(tree.root / "src"),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "ANTIBODY_CACHE": str(cache),
    }


def _setting(tree: Tree) -> str:
    """What decides a run besides its command."""
    return _digest([tree.digest(), platform.python_version(), _processor(), *(f"{x} {version(x)}" for x in LIBRARIES)])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith("model name")), platform.machine())


def _digest(parts: Iterable[str | bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(f"{len(data)} ".encode() + data)
    return digest.hexdigest()


def _git(*arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True)
    if done.returncode != 0:
        said = done.stderr.decode().strip()
        raise RunFailed(f"git {' '.join(arguments)}: {said or 'no such commit'}")
    return done.stdout


# -- comparing ---------------------------------------------------------------------------------------------------


def compare(base: Path, tree: Path, name: str) -> Compared:
    """Compare what the run ``name`` left in two folders."""
    result = Compared(name)
    ours, theirs = _files(base / name), _files(tree / name)
    for file in sorted(ours | theirs):
        if file not in ours or file not in theirs:
            here, there = ("is there", "is not") if file in theirs else ("is not", "is there")
            result.differences.append(Difference(file, "the file", there, here))
            continue
        result.num_files += 1
        read = _tensors if file.endswith(".safetensors") else _columns if file.endswith(".parquet") else _values
        one, other = read(base / name / file), read(tree / name / file)
        result.num_values += len(one)
        difference = _first_difference(file, one, other)
        if difference is not None:
            result.differences.append(difference)
    if not ours | theirs:
        result.differences.append(Difference(name, "files to compare", "none", "none"))
    return result


def _files(folder: Path) -> set[str]:
    compared = {".safetensors", ".parquet", ".jsonl"}
    named = {"result.json", "summary.json", "evaluation.json"}
    found = (path for path in folder.rglob("*") if path.suffix in compared or path.name in named)
    return {str(path.relative_to(folder)) for path in found}


@dataclass(frozen=True)
class Bits:
    """A tensor, to be compared bit for bit."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __repr__(self) -> str:
        return f"{self.dtype}{list(self.shape)} {hashlib.sha256(self.data).hexdigest()[:12]}"


def _tensors(file: Path) -> dict[str, Any]:
    """Tensors by name, without a tensor library: the header is JSON (safetensors' format), the rest is data."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(content[8:start])
    values: dict[str, Any] = {f"metadata.{k}": v for k, v in sorted(header.pop("__metadata__", {}).items())}
    for name, entry in sorted(header.items()):
        first, last = entry["data_offsets"]
        values[name] = Bits(entry["dtype"], tuple(entry["shape"]), content[start + first : start + last])
    return values


def _columns(file: Path) -> dict[str, Any]:
    return pq.read_table(file).to_pydict()


def _values(file: Path) -> dict[str, Any]:
    """Every leaf of a JSON file, or of the lines of one, under its path; timings and paths left out."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines()]
        return {key: value for number, line in enumerate(lines, 1) for key, value in _leaves(line, f"line {number}")}
    return dict(_leaves(json.loads(text), ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key not in PATHS | TIMINGS | TEXTS:
                yield from _leaves(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value:
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}[{number}]")
    else:
        yield path, value


def _first_difference(file: str, base: Mapping[str, Any], tree: Mapping[str, Any]) -> Difference | None:
    for key in [*base, *(key for key in tree if key not in base)]:
        if key not in base or key not in tree:
            missing = "absent"
            return Difference(file, key, _short(base.get(key, missing)), _short(tree.get(key, missing)))
        one, other = base[key], tree[key]
        if _same(one, other):
            continue
        if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
            row = next(i for i, pair in enumerate(zip(one, other, strict=True)) if not _same(*pair))
            where = f"column {key}, row {row}"
            return Difference(file, where, _short(one[row]), _short(other[row]), _size(one, other))
        return Difference(file, key, _short(one), _short(other), _size(one, other))
    return None


def _same(one: Any, other: Any) -> bool:
    """Equal, bit for bit in floats: NaN is itself, and 0.0 is not -0.0."""
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()  # "nan", and the sign of a zero too
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    return type(one) is type(other) and bool(one == other)


def _size(one: Any, other: Any) -> float | None:
    """Largest absolute difference; None where that means nothing."""
    if isinstance(one, Bits) and isinstance(other, Bits):
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return None
        import torch
        from safetensors.torch import _TYPES  # the one place that names the types

        first, second = (torch.frombuffer(bytearray(x.data), dtype=_TYPES[x.dtype]) for x in (one, other))
        return float((first.double() - second.double()).abs().max())
    if isinstance(one, list):
        sizes = [size for pair in zip(one, other, strict=True) if (size := _size(*pair)) is not None]
        return max(sizes, default=None)
    if isinstance(one, bool) or not isinstance(one, int | float) or not isinstance(other, int | float):
        return None
    return abs(one - other)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


# -- the command -------------------------------------------------------------------------------------------------


def with_sources(names: Sequence[str] | None) -> list[Run]:
    """The runs named, all by default, in order, with the runs that they read.

    Raises:
        RunFailed: a name that no run has.
    """
    wanted = {run.name for run in RUNS} if names is None else set(names)
    if unknown := wanted - {run.name for run in RUNS}:
        known = ", ".join(run.name for run in RUNS)
        raise RunFailed(f"--only: no run is called {', '.join(sorted(unknown))}. Runs: {known}.")
    wanted |= {run.after for run in RUNS if run.name in wanted and run.after}
    return [run for run in RUNS if run.name in wanted]


def table(results: Sequence[Compared]) -> str:
    """One line per run, and under it what differs."""
    width = max(len(result.name) for result in results)
    lines = [f"{'run':{width}}  files  values  result"]
    for result in results:
        outcome = "same" if not result.differences else f"{len(result.differences)} files differ"
        lines.append(f"{result.name:{width}}  {result.num_files:5}  {result.num_values:6}  {outcome}")
        lines += [f"  {difference}" for difference in result.differences]
    return "\n".join(lines)


def compared(base: str, runs: Sequence[Run], keep: Path) -> list[Compared]:
    """Run both trees where needed, and compare."""
    with tempfile.TemporaryDirectory(prefix="antibody-golden-") as sources:
        before = carry_out(base_tree(base, Path(sources)), "base", runs, keep)
    after = carry_out(Tree(ROOT, "working"), "tree", runs, keep)
    return [compare(before, after, run.name) for run in runs]


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("base", metavar="BASE", help="the commit to compare with")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the runs here, and use those that still hold")
    parser.add_argument("--only", metavar="NAME,...", help="some of the runs: " + ", ".join(run.name for run in RUNS))
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args(arguments)
    try:
        runs = with_sources(given.only and [name.strip() for name in given.only.split(",") if name.strip()])
        if given.keep is not None:
            results = compared(given.base, runs, given.keep.expanduser().absolute())
        else:
            with tempfile.TemporaryDirectory(prefix="antibody-golden-") as folder:
                results = compared(given.base, runs, Path(folder))
    except RunFailed as error:
        print(f"golden: {error}", file=sys.stderr)
        return 2
    same = not any(result.differences for result in results)
    if given.json:
        print(json.dumps({"base": given.base, "same": same, "runs": [asdict(result) for result in results]}, indent=2))
    else:
        print(table(results))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
