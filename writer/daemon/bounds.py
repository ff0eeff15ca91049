"""What the writer daemon accepts before it refuses."""

from __future__ import annotations

import msgspec


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the daemon's memory and patience. Sizes are in bytes, times in seconds.

    `requests` and `held_bytes` bound the requests of all clients that are received and not yet answered. Beyond them a
    client gets BusyError. `batch_bytes` and `batch_modules` bound one batch. `group` and `group_bytes` are the largest
    number of requests and their largest size in one commit. A connection is closed `handshake` after it was opened
    without a greeting, `unfinished` after a message has begun and not ended, and `idle` after it last sent anything;
    clients reconnect by themselves. `farewell` is the time for the last answers when the daemon stops. A commit that
    takes longer than `hanging` means that the disk hangs: then the daemon sends no more signs of life, and the time
    limits of clients run out. A group takes in no further request once staging it has taken `staging`, or less where
    the disk is quick. A daemon that starts waits `slot_patience` for a free reader slot.

    When all `connections` are open, a newcomer takes the place of an idle one: of the user who has most, the one that
    was silent for longest, and for `spared` at least. Where none is idle, a user who has at most an eighth of them gets
    one of an eighth more.
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
    spared: float = 1.0
    farewell: float = 5.0
    hanging: float = 120.0
    staging: float = 0.01
    slot_patience: float = 30.0
