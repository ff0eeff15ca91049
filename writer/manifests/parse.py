"""From a manifest's content to what it declares, or to all its errors. Raises nothing."""

from __future__ import annotations

import logging
from typing import Final

from dspy_registry.writer.manifests.declarations import LoadedFile, ManifestError, shown, unreadable
from dspy_registry.writer.manifests.lines import shown_path
from dspy_registry.writer.manifests.text import TextProblem, read_text
from dspy_registry.writer.manifests.validate import validate_document

MAX_FILE_BYTES: Final = 4 * 1024 * 1024

_EMPTY: Final = "is empty, as while it is being saved. To withdraw what it declares, delete it or leave a comment in it"

_log = logging.getLogger("dspy_registry")


def load(file: str, content: bytes, suffix: str) -> LoadedFile:
    """What a file's content declares, or all its errors."""
    if len(content) > MAX_FILE_BYTES:
        return unreadable(file, f"has more than {MAX_FILE_BYTES} bytes")
    if not content.strip():
        return unreadable(file, _EMPTY)
    try:
        return validate_document(file, read_text(content.decode("utf-8-sig"), suffix))
    except UnicodeDecodeError as error:
        return unreadable(file, "is not UTF-8", content.count(b"\n", 0, error.start) + 1)
    except TextProblem as problem:
        found = (problem, *problem.further)
        errors = (ManifestError(file, one.line, shown_path(one.path), one.message) for one in found)
        return LoadedFile(file, None, shown(errors))
    except Exception as error:
        _log.exception("manifest %s could not be read", file)
        return unreadable(file, f"cannot be read: {type(error).__name__}: {error}")
