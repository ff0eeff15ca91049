"""Where the cluster is, and who this host is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from dspy_registry.registry_store.errors import InvalidArgumentError

DEFAULT_PREFIX: Final = "/dspy-registry/"
_PREFIX = re.compile(r"[\x21-\x7e]{1,200}")


class ClusterOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a cluster.

    `endpoints` are URLs of nodes, tried in turn. `prefix` is what all keys begin with: registries with different
    prefixes share a cluster without knowing of each other. `ca` is a file of certificates to trust instead of the
    system's, `cert` and `key` the client's certificate; None: without. `user` and `password` None: no log-in.
    """

    endpoints: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    user: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"ClusterOptions({', '.join(self.endpoints)}, prefix={self.prefix!r})"


def check_options(options: ClusterOptions) -> None:
    """Raises InvalidArgumentError that names everything wrong."""
    problems = []
    if not options.endpoints:
        problems.append("no endpoint is named")
    problems += [found for endpoint in options.endpoints for found in _endpoint_problems(endpoint)]
    if not _PREFIX.fullmatch(options.prefix) or not options.prefix.endswith("/"):
        problems.append(f"the prefix {options.prefix!r} is not 1 to 200 visible ASCII characters that end with /")
    if (options.cert is None) != (options.key is None):
        problems.append("a client certificate needs its key, and a key its certificate")
    if (options.user is None) != (options.password is None):
        problems.append("a user needs a password, and a password a user")
    for file in (options.ca, options.cert, options.key):
        if file is not None and not file.is_file():
            problems.append(f"there is no file {file}")
    if problems:
        raise InvalidArgumentError(f"the cluster cannot be used: {'; '.join(problems)}.")


def _endpoint_problems(endpoint: str) -> list[str]:
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.path in ("", "/")
        _ = parts.port
    except ValueError:
        return ["an endpoint is not a URL"]
    if parts.username is not None or parts.password is not None:
        return ["an endpoint holds a user or a password: name these apart from it"]
    return [] if is_url else [f"{endpoint!r} is not like https://host:2379"]
