"""The faults by name, in the order of the table."""

from __future__ import annotations

from typing import Final

from tests.stress import (
    cluster,
    damage,
    disk_errors,
    environment,
    inputs,
    killed_writer,
    pools,
    power_loss,
    readers,
    soak,
)
from tests.stress.faults import Fault

_ALL: Final = (
    power_loss.FAULT,
    killed_writer.FAULT,
    disk_errors.FAULT,
    damage.FAULT,
    pools.FAULT,
    soak.FAULT,
    inputs.FAULT,
    inputs.LIVE,
    readers.FAULT,
    environment.FAULT,
    cluster.FAULT,
)
FAULTS: Final[dict[str, Fault]] = {fault.name: fault for fault in _ALL}
