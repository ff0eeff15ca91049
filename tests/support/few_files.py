"""A process that may open only a few more files. Use it in a process of its own."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice


@contextmanager
def few_files(more: int) -> Iterator[None]:
    """Meanwhile this process may open this number of further files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first_refused = next(islice((number for number in count() if not _is_open(number)), more, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (first_refused, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
