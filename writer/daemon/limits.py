"""What the writer daemon accepts before it refuses."""

from __future__ import annotations

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the daemon's memory and patience. Sizes are in bytes, times in seconds.

    `requests` and `held_bytes` bound what has been received and not yet answered, of all clients together; a client
    that comes beyond them gets BusyError. `batch_bytes` and `batch_modules` bound one batch. `group` and `group_bytes`
    are how many requests, of which size, a commit takes in before it closes the door. A connection is closed
    `handshake` after it was opened without a greeting, `unfinished` after a message has begun and not ended, and
    `idle` after it was last heard of; clients reconnect by themselves. `farewell` is for writing the last answers
    when the daemon stops. A commit that takes longer than `hanging` is taken for a disk that hangs: the daemon no
    longer tells clients that it is at work, and their time limits run out.
    """

    connections: int = 1000
    requests: int = 4096
    held_bytes: int = 192 * 1024 * 1024
    batch_bytes: int = 128 * 1024 * 1024
    batch_modules: int = 1_000_000
    group: int = 1024
    group_bytes: int = 16 * 1024 * 1024
    handshake: float = 5.0
    unfinished: float = 30.0
    idle: float = 3600.0
    farewell: float = 5.0
    hanging: float = 120.0
