"""The process that parses manifests, and the messages between it and its parent.

Some texts take a parser far more than linear time. A process can be ended; a thread cannot. This one ends itself when
one file has taken too much of the processor's time, even if its parent is dead. Each message is its length, 4 bytes
big-endian, and msgpack.
"""

from __future__ import annotations

import signal
import socket
import sys
from typing import Any, Final

import msgspec

from dspy_registry.writer.manifests.declarations import Declarations, ManifestError
from dspy_registry.writer.manifests.lines import Path
from dspy_registry.writer.manifests.parse import load
from dspy_registry.writer.manifests.text import TextProblem, read_text

LENGTH_BYTES: Final = 4


class Question(msgspec.Struct, array_like=True):
    """Parse this content. `lines`: tell the lines of its parts, and not what it declares."""

    file: str
    suffix: str
    content: bytes
    lines: bool = False


class Parsed(msgspec.Struct, array_like=True):
    """What `LoadedFile` holds; or the lines of the parts that an error may name later."""

    declared: Declarations | None = None
    errors: tuple[ManifestError, ...] = ()
    places: dict[str, Path] = {}
    lines: list[tuple[Path, int]] = []


def send(connection: socket.socket, message: Any) -> None:
    """Raises OSError."""
    encoded = msgspec.msgpack.encode(message)
    connection.sendall(len(encoded).to_bytes(LENGTH_BYTES, "big") + encoded)


def receive(connection: socket.socket) -> bytes:
    """One message. Raises EOFError when the other side is gone, OSError."""
    return _exactly(connection, int.from_bytes(_exactly(connection, LENGTH_BYTES), "big"))


def _exactly(connection: socket.socket, size: int) -> bytes:
    held = bytearray()
    while len(held) < size:
        chunk = connection.recv(min(size - len(held), 1 << 20))
        if not chunk:
            raise EOFError
        held += chunk
    return bytes(held)


def answer(question: Question) -> Parsed:
    """The answer to a question."""
    if question.lines:
        try:
            document = read_text(question.content.decode("utf-8-sig"), question.suffix)
        except (TextProblem, UnicodeDecodeError):  # it was read before
            return Parsed()
        return Parsed(lines=document.lines_of_declarations())
    loaded = load(question.file, question.content, question.suffix)
    return Parsed(loaded.declared, loaded.errors, loaded.places)


def main(cpu_seconds: float) -> None:
    """Answer questions until the parent is gone. A question that takes more time than this ends the process."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    decode = msgspec.msgpack.Decoder(Question).decode
    with socket.socket(fileno=sys.stdin.fileno()) as connection:
        while True:
            try:
                question = decode(receive(connection))
                signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
                answered = answer(question)
                signal.setitimer(signal.ITIMER_PROF, 0)
                send(connection, answered)
            except (EOFError, OSError):
                return
