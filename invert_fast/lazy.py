"""Names that are imported when they are first asked for: of our own packages, since `invert-fast --help` needs no
PyTorch, and of what other packages register by entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache, cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

from .types import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints


def exporting(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package whose public names live in the modules `homes`: name → module, absolute."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(homes[name]), name)

    return get


class Registered:
    """What installed packages add under the entry points of one group: name → the object at its place.

    kind: what errors call one of them; own: names that are ours, which nobody can replace. The entry points are read
    when they are first asked for, what they name is imported by `load` alone.
    """

    def __init__(self, group: str, kind: str, own: Iterable[str] = ()):
        self.group, self.kind, self.own = group, kind, tuple(own)

    @cached_property
    def points(self) -> dict[str, EntryPoint]:
        """By name, without those that are named like ours."""
        found = {point.name: point for point in _installed().select(group=self.group)}
        return {name: found[name] for name in sorted(found.keys() - set(self.own))}

    def names(self) -> tuple[str, ...]:
        """Ours first, then those of other packages."""
        return (*self.own, *self.points)

    def load(self, name: str) -> Any:
        """What another package registered by this name. InputError for a name that nobody did, and where the package
        cannot be imported."""
        point = self.points.get(name)
        if point is None:
            raise InputError(f"{self.kind} '{name}' is unknown, expected one of {', '.join(self.names()) or 'none'}")
        try:
            return point.load()
        except Exception as error:  # whatever somebody else's package raises is that package's, and no bug of ours
            raise InputError(
                f"{self.said(name)} cannot be imported ({type(error).__name__}: {error}): mend or uninstall that "
                "package"
            ) from error

    def make(self, name: str, *given: Any) -> Any:
        """What the registered callable makes of these arguments; InputError where it cannot, or says so itself."""
        make = self.load(name)
        try:
            return make(*given)
        except InputError:
            raise
        except Exception as error:
            wanted = f"{len(given)} arguments" if given else "no arguments"
            raise InputError(
                f"{self.said(name)} cannot be made ({type(error).__name__}: {error}), expected a callable of {wanted} "
                f"at {self.points[name].value}: mend or uninstall that package"
            ) from error

    def said(self, name: str) -> str:
        """`strategy 'x' of package 1.0`, for errors."""
        dist = getattr(self.points.get(name), "dist", None)
        return f"{self.kind} '{name}' of {'an unnamed package' if dist is None else f'{dist.name} {dist.version}'}"


@cache
def _installed() -> EntryPoints:
    """Of all packages, read once: a look at each takes milliseconds in all."""
    from importlib.metadata import entry_points  # brings the parser of e-mails along

    return entry_points()  # type: ignore[return-value]
