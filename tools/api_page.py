"""docs/api.md from the docstrings of what is public, and tests/public_names.txt, by what name it is promised.

`python tools/api_page.py --write`, or `make api`. What is public is said in `invert_fast.PUBLIC`. Nothing is imported:
griffe reads the sources.
"""

from __future__ import annotations

import argparse
import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe

ROOT = Path(__file__).resolve().parents[1]
PAGE, NAMES = ROOT / "docs" / "api.md", ROOT / "tests" / "public_names.txt"
MARK = "<!-- From here on tools/api_page.py writes, from the docstrings. -->\n"
_WIDE = 100  # characters of a signature on one line
_NOT_NAMED = ("self", "cls")


class Surface:
    """What is public: `modules` and the members of each. problems: what is said nowhere, or of no type."""

    def __init__(self, root: Path = ROOT):
        self.package = griffe.load("invert_fast", search_paths=[root], try_relative_path=False, allow_inspection=False)
        self.problems: list[str] = []
        self.modules: dict[str, Any] = {
            name: self.package[name.partition(".")[2]] if "." in name else self.package for name in self._public()
        }

    def _public(self) -> tuple[str, ...]:
        return ast.literal_eval(str(self.package["PUBLIC"].value))

    def members(self, module: str) -> Iterator[tuple[str, griffe.Object]]:
        """The names in `__all__` of a module but its version, where they are defined."""
        for name in map(str, self.modules[module].exports or ()):
            if name != "__version__":
                found = self.modules[module][name]
                yield f"{module}.{name}", found.final_target if isinstance(found, griffe.Alias) else found

    def parts(self, path: str, item: griffe.Class) -> Iterator[tuple[str, griffe.Object]]:
        """Methods, properties and fields of a class that are no secret, in the order of its source."""
        for name, member in item.members.items():
            if name.startswith("_") or isinstance(member, griffe.Alias):
                continue
            if not _is_set_in_init(item, member):
                yield f"{path}.{name}", member

    def everything(self) -> Iterator[tuple[str, griffe.Object]]:
        """All that is public by its full name, members of classes after their class."""
        for module in self.modules:
            for path, item in self.members(module):
                yield path, item
                if isinstance(item, griffe.Class):
                    yield from self.parts(path, item)

    def check(self) -> list[str]:
        """One line for each public name without a docstring, and each signature without types."""
        found = [f"{name} has no docstring" for name, module in self.modules.items() if not _text(module)]
        for path, item in self.everything():
            told_by_class = item.is_attribute and "property" not in item.labels and path.count(".") > 1
            if not _text(item) and not (told_by_class and isinstance(item.parent, griffe.Class)):
                found.append(f"{path} has no docstring")
            found += [f"{path}: {what}" for what in _untyped(item)]
        return found


def _is_set_in_init(item: griffe.Class, member: griffe.Object) -> bool:
    """An attribute that the class does not declare: no promise."""
    made = item.members.get("__init__")
    first, last = (None, None) if made is None or made.is_alias else (made.lineno, made.endlineno)
    return first is not None and last is not None and first <= (member.lineno or 0) <= last and member is not made


def _text(item: griffe.Object) -> str:
    return "" if item.docstring is None else item.docstring.value.strip()


def _untyped(item: griffe.Object) -> Iterator[str]:
    if isinstance(item, griffe.Class):
        made = item.members.get("__init__")
        if isinstance(made, griffe.Function):
            yield from _untyped(made)
    elif isinstance(item, griffe.Function):
        for parameter in item.parameters:
            if parameter.name not in _NOT_NAMED and parameter.annotation is None:
                yield f"{parameter.name} has no type"
        if item.returns is None and item.name != "__init__":
            yield "what it returns has no type"
    elif isinstance(item, griffe.Attribute) and "property" in item.labels and item.annotation is None:
        yield "what it returns has no type"


def _parameters(item: griffe.Object) -> list[griffe.Parameter]:
    if isinstance(item, griffe.Class):
        made = item.all_members.get("__init__")
        found = made.parameters if isinstance(made, griffe.Function) else ()
    else:
        found = item.parameters if isinstance(item, griffe.Function) else ()
    return [parameter for parameter in found if parameter.name not in _NOT_NAMED]


def _signature(path: str, item: griffe.Object) -> str:
    name, parts, seen = path.rpartition(".")[2], [], None
    for parameter in _parameters(item):
        kind = parameter.kind
        if kind is griffe.ParameterKind.keyword_only and seen not in (kind, griffe.ParameterKind.var_positional):
            parts.append("*")
        stars = (
            "*"
            if kind is griffe.ParameterKind.var_positional
            else "**"
            if kind is griffe.ParameterKind.var_keyword
            else ""
        )
        text = stars + parameter.name + (f": {parameter.annotation}" if parameter.annotation is not None else "")
        given = parameter.default is not None and not stars
        parts.append(text + (f" = {parameter.default}" if given else ""))
        seen = kind
    returns = f" -> {item.returns}" if isinstance(item, griffe.Function) and item.returns is not None else ""
    line = f"{name}({', '.join(parts)}){returns}"
    if len(line) > _WIDE:
        line = f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"
    return line


def page() -> str:
    """The generated part of docs/api.md."""
    surface, lines = Surface(), []
    for module in surface.modules:
        lines += [f"## `{module}`", "", _text(surface.modules[module]), ""]
        for path, item in surface.members(module):
            lines += [f"### `{path}`", "", *_shown(path, item), _text(item), ""]
            if isinstance(item, griffe.Class):
                for inner, member in surface.parts(path, item):
                    if isinstance(member, griffe.Function) or "property" in member.labels:
                        lines += _member(inner, member)
    return "\n".join(lines).rstrip() + "\n"


def _shown(path: str, item: griffe.Object) -> list[str]:
    if isinstance(item, griffe.Attribute):
        return [f"`{path.rpartition('.')[2]} = {item.value}`", ""]
    return ["```python", _signature(path, item), "```", ""] if _parameters(item) or item.is_function else []


def _member(path: str, item: griffe.Object) -> list[str]:
    if isinstance(item, griffe.Function):
        return ["```python", _signature(path, item), "```", "", _text(item), ""]
    assert isinstance(item, griffe.Attribute)
    return [f"`{path.rpartition('.')[2]}: {item.annotation}`", "", _text(item), ""]


def names() -> list[str]:
    """Every public name, with the parameters that it is promised to take."""
    found = []
    for path, item in Surface().everything():
        called = isinstance(item, (griffe.Class, griffe.Function))
        found.append(path + (f"({', '.join(p.name for p in _named(item))})" if called else ""))
    return found


def _named(item: griffe.Object) -> list[griffe.Parameter]:
    """What can be given by name."""
    return [
        p
        for p in _parameters(item)
        if p.kind in (griffe.ParameterKind.positional_or_keyword, griffe.ParameterKind.keyword_only)
    ]


def main() -> None:
    """Print the page, or write it and add the names that are new."""
    parser = argparse.ArgumentParser(description="the page of the public API, from its docstrings")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}, add what is new to {NAMES.name}")
    if not parser.parse_args().write:
        print(page())
        return
    head = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(head + MARK + "\n" + page(), encoding="utf-8")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    recorded = NAMES.read_text(encoding="utf-8").splitlines() if NAMES.exists() else []
    known = {line.split(" ", 1)[1] for line in recorded if line[:1].isdigit()}
    NAMES.write_text("\n".join([*recorded, *(f"{version} {n}" for n in names() if n not in known)]) + "\n", "utf-8")


if __name__ == "__main__":
    main()
