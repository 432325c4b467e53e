"""Prepare the pages of the site and build it: what ``make docs`` runs.

    python docs/build.py [--serve]

The pages in ``docs/`` are written to be read in the repository too. This copies them to ``build/docs`` and changes:

- ``{{ package }}`` is the import name of the package, so that it is written in one place (``PACKAGE``).
- ``{{ readme }}`` is the README, so that the home page cannot say something else.
- ``{{ verbs }}`` is the reference of every verb's settings, from their dataclasses.
- ``{{ defences }}`` is the reference of every defence's options, from the catalogue.
- ``{{ antibody.yaml }}`` is the reference of the server's settings, from their dataclasses.
- A link that leaves ``docs/`` becomes a link into the repository if mkdocs.yml has a ``repo_url``, and plain text
  otherwise.

Then it calls the generator, which fails on any warning: a dead link, a name that the reference does not find.
"""

import argparse
import dataclasses
import importlib
import inspect
import json
import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
DOCS, PREPARED = ROOT / "docs", ROOT / "build" / "docs"
PACKAGE = "antibody_llm"
README = ROOT / "README.md"
"""What index.md shows."""
NOT_SHOWN = ("build.py", "__pycache__")

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")


def prepare() -> None:
    """Fill ``build/docs``."""
    shutil.rmtree(PREPARED, ignore_errors=True)
    shutil.copytree(DOCS, PREPARED, ignore=shutil.ignore_patterns(*NOT_SHOWN))
    found = re.search(r"^repo_url: *(\S+)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    repository = found[1] if found else None
    for page in PREPARED.rglob("*.md"):
        here = page.parent.relative_to(PREPARED).as_posix()
        page.write_text(prepared(page.read_text(encoding="utf-8"), here, repository), encoding="utf-8")


def prepared(markdown: str, here: str, repository: str | None) -> str:
    """A page with its variables filled in and its links looked after.

    Args:
        markdown: As in the repository.
        here: The page's folder, from ``docs``.
        repository: Where the repository can be read; None where that is not known.
    """
    if "{{ readme }}" in markdown:
        markdown = markdown.replace("{{ readme }}", _from_docs(README.read_text(encoding="utf-8")))
    if "{{ verbs }}" in markdown:
        markdown = markdown.replace("{{ verbs }}", _verbs())
    if "{{ defences }}" in markdown:
        markdown = markdown.replace("{{ defences }}", _defences())
    if "{{ antibody.yaml }}" in markdown:
        markdown = markdown.replace("{{ antibody.yaml }}", _server_settings())
    markdown = markdown.replace("{{ package }}", PACKAGE)
    return LINK.sub(lambda found: _kept(found, here, repository), markdown)


def _from_docs(readme: str) -> str:
    """The README's links, as seen from ``docs/``."""

    def moved(found: re.Match[str]) -> str:
        text, target = found[1], found[2]
        if target.startswith(("http:", "https:", "#")):
            return found[0]
        return f"{text}({target.removeprefix('docs/') if target.startswith('docs/') else '../' + target})"

    return re.sub(r"(!?\[[^\]]*\])\(([^)\s]+)\)", moved, readme)


def _kept(found: re.Match[str], here: str, repository: str | None) -> str:
    text, target = found[1], found[2]
    if target.startswith(("http:", "https:", "mailto:", "#")):
        return found[0]
    path = posixpath.normpath(posixpath.join("docs", here, target.partition("#")[0]))
    if path.startswith("docs/"):
        return found[0]
    if not (ROOT / path).exists():  # left as it is, so that a strict build fails on it
        return found[0]
    return f"[{text}]({repository.rstrip('/')}/blob/main/{path})" if repository else text


def _verbs() -> str:
    """Every verb with what it does, and its settings: name, flag, default, meaning."""
    settings = importlib.import_module(f"{PACKAGE}.settings")
    cli = importlib.import_module(f"{PACKAGE}.cli.verbs")
    parts = []
    for verb, kind in settings.SETTINGS.items():
        spell = cli.spelling([verb])
        parts += [f"## {verb}", "", inspect.getdoc(kind) or "", ""]
        for field in settings.fields_of(kind):
            default = "required" if field.required else f"default `{field.default}`"
            parts.append(f"- **`{field.name}`** (`{spell(field.name, None)}`, {default}): {field.text}")
        parts.append("")
    return "\n".join(parts)


def _server_settings() -> str:
    """Every key of antibody.yaml with its default and its meaning: those at the top, then a heading for each group."""
    kind = importlib.import_module(f"{PACKAGE}.server.settings").ServerSettings
    top, groups = [], []
    for field, text, hint, default in _keys(kind):
        inner = next((each for each in (hint, *get_args(hint)) if dataclasses.is_dataclass(each)), None)
        if inner is None:
            top.append(_key(field, default, text))
            continue
        intro = [inspect.getdoc(inner) or "", *([text] if text else [])]
        groups += [
            f"### {field}",
            "",
            *intro,
            "",
            *(_key(name, given, means) for name, means, _, given in _keys(inner)),
            "",
        ]
    return "\n".join(["### At the top", "", *top, "", *groups])


def _keys(kind: type) -> Iterator[tuple[str, str, Any, Any]]:
    """Name, meaning, type and default of every field of a dataclass; the default is MISSING where there is none."""
    about = {field.name: field for field in importlib.import_module(f"{PACKAGE}.settings").fields_of(kind)}
    for field in dataclasses.fields(kind):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        yield field.name, about[field.name].text, about[field.name].hint, default


def _key(name: str, default: Any, text: str) -> str:
    if default is dataclasses.MISSING:
        return f"- **`{name}`** (required): {text}"
    shown = str(default) if isinstance(default, Path) else list(default) if isinstance(default, tuple) else default
    return f"- **`{name}`** (default `{json.dumps(shown)}`): {text}"


def _defences() -> str:
    """A heading and an instruction for each defence's options, in the order of the catalogue's file."""
    catalogue = (ROOT / "src" / PACKAGE / "defences" / "catalogue.py").read_text(encoding="utf-8")
    modules = {name: module for module, name in re.findall(r"^from \.(\S+) import (\w+)$", catalogue, re.MULTILINE)}
    entries = re.findall(r'^    \(Stage\.(\w+), "([\w-]+)"\): (\w+),$', catalogue, re.MULTILINE)
    assert entries, "the catalogue has another form than docs/build.py reads"
    parts: list[str] = []
    for stage, name, cls in entries:
        module = modules[cls]
        parts.append(f"## {name} ({stage.lower()})\n\n::: {PACKAGE}.defences.{module}\n{AS_TEXT}")
        source = (ROOT / "src" / PACKAGE / "defences" / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        if options := re.search(r"^    options = (\w+)$", source, re.MULTILINE):
            parts.append(f"::: {PACKAGE}.defences.{module}.{options[1]}\n{AS_OPTIONS}")
    return "\n".join(parts)


AS_TEXT = """    options:
      show_root_heading: false
      show_root_toc_entry: false
      members: false
"""
AS_OPTIONS = """    options:
      heading_level: 4
      merge_init_into_class: false
      filters: ["!^__"]
"""


def main() -> int:
    """Prepare and build; returns the generator's exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--serve", action="store_true", help="serve the site on this machine instead of writing it")
    given = parser.parse_args()
    prepare()
    generator = Path(sys.executable).with_name("zensical")
    command = [str(generator), "serve"] if given.serve else [str(generator), "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
