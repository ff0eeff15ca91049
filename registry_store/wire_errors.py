"""Errors across the socket: the client raises the daemon's error, of the same class and with the same fields."""

from __future__ import annotations

from typing import Final

from dspy_registry.registry_store import errors
from dspy_registry.registry_store.errors import ProtocolError, RegistryError
from dspy_registry.registry_store.protocol import Failed

Argument = str | int | None | tuple[str, ...]

_KINDS: Final[dict[str, type[RegistryError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RegistryError)
}
_ALL_TEXT: Final = 16 * 1024
"""Bytes of all texts of one error. The limit keeps the daemon's reply cache small."""
_LONGEST_TEXT: Final = 4000
_MOST_TEXTS: Final = 100


def pack(request: int, error: BaseException) -> Failed:
    """The answer to a request that failed. Texts beyond 16 KiB are cut."""
    if not isinstance(error, RegistryError):
        error = _internal(error)
    room = _Room(_ALL_TEXT)
    remedy = room.cut(error.remedy)
    reduced = error.__reduce__()
    arguments = tuple(room.packed(argument) for argument in reduced[1]) if isinstance(reduced, tuple) else ()
    return Failed(request, type(error).__name__, arguments, remedy)


def unpack(failed: Failed) -> RegistryError:
    """The error to raise."""
    kind = _KINDS.get(failed.kind)
    if kind is None:
        return RegistryError(f"{failed.kind}: {failed.arguments}.", remedy=failed.remedy)
    try:
        error = kind(*failed.arguments)  # type: ignore[arg-type]  # whatever was packed, or else TypeError
    except (TypeError, ValueError) as reason:
        return ProtocolError(f"the daemon's {failed.kind} is not understood: {reason}.")
    if error.remedy != failed.remedy:  # most are of the class
        error.remedy = failed.remedy
    return error


def _internal(error: BaseException) -> RegistryError:
    return RegistryError(
        f"the writer daemon failed on this request: {type(error).__name__}: {error}.",
        remedy="Nothing was changed; the daemon's log says more.",
    )


class _Room:
    """How many bytes are left for the texts of one error."""

    def __init__(self, left: int) -> None:
        self._left = left

    def packed(self, argument: object) -> Argument:
        if argument is None or (isinstance(argument, int) and -(2**63) <= argument < 2**63):
            return argument
        if isinstance(argument, tuple | list):
            return tuple(self.cut(str(item)) for item in argument[:_MOST_TEXTS] if self._left > 0)
        return self.cut(str(argument))

    def cut(self, text: str) -> str:
        """As much of the text as there is room for. An error may quote text that is not UTF-8, so it is escaped."""
        sound = text[: _LONGEST_TEXT + 1].encode("utf-8", "backslashreplace")
        most = max(0, min(_LONGEST_TEXT, self._left))
        self._left -= min(len(sound), most)
        return sound.decode() if len(sound) <= most else f"{sound[:most].decode('utf-8', 'ignore')}…"
