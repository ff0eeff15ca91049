"""What the writer daemon says of itself."""

from __future__ import annotations

from typing import Any

import msgspec


class DaemonStatus(msgspec.Struct, frozen=True):
    """The writer daemon at work.

    `revision` is the newest committed one, `uptime` in seconds. `queued` are requests accepted and not yet answered;
    `requests` those answered since the start, failures included; `groups` the commits they took. `sections` is
    what further parts of the daemon say of themselves, by the name of the part. `hanging`: a commit takes so
    long that it may never end.
    """

    pid: int
    revision: int
    uptime: float
    connections: int
    queued: int
    requests: int
    groups: int
    sections: dict[str, Any] = {}
    hanging: bool = False
