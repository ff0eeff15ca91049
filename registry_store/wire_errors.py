"""Errors across the socket: the daemon's error is raised in the client as what it is, with all its fields."""

from __future__ import annotations

from typing import Final

from registry_store import errors
from registry_store.errors import ProtocolError, RegistryError
from registry_store.protocol import Failed

Argument = str | int | None | tuple[str, ...]

_KINDS: Final[dict[str, type[RegistryError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RegistryError)
}
_LONGEST_TEXT: Final = 4000
_MOST_TEXTS: Final = 100


def pack(request: int, error: BaseException) -> Failed:
    """The answer to a request that failed. Texts of absurd length are cut."""
    if not isinstance(error, RegistryError):
        error = _internal(error)
    reduced = error.__reduce__()
    arguments = tuple(_packed(argument) for argument in reduced[1]) if isinstance(reduced, tuple) else ()
    return Failed(request, type(error).__name__, arguments, error.remedy)


def unpack(failed: Failed) -> RegistryError:
    """The error to raise."""
    kind = _KINDS.get(failed.kind)
    if kind is None:
        return RegistryError(f"{failed.kind}: {failed.arguments}.", remedy=failed.remedy)
    try:
        error = kind(*failed.arguments)  # type: ignore[arg-type]  # whatever was packed, or else TypeError
    except (TypeError, ValueError) as reason:
        return ProtocolError(f"the daemon's {failed.kind} is not understood: {reason}.")
    error.remedy = failed.remedy
    return error


def _internal(error: BaseException) -> RegistryError:
    return RegistryError(
        f"the writer daemon failed on this request: {type(error).__name__}: {error}.",
        remedy="Nothing was changed; the daemon's log says more.",
    )


def _packed(argument: object) -> Argument:
    if argument is None or (isinstance(argument, int) and -(2**63) <= argument < 2**63):
        return argument
    if isinstance(argument, tuple | list):
        return tuple(_cut(str(item)) for item in argument[:_MOST_TEXTS])
    return _cut(str(argument))


def _cut(text: str) -> str:
    """Also makes it encodable: an error may quote what is not."""
    sound = text.encode("utf-8", "backslashreplace").decode()
    return sound if len(sound) <= _LONGEST_TEXT else f"{sound[:_LONGEST_TEXT]}…"
