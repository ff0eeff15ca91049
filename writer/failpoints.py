"""Named points in a commit, in an upgrade and in a cluster where tests and benchmarks make the writer die or wait.

$DSPY_REGISTRY_FAILPOINTS holds `name=action` pairs separated by commas. An action is `kill` (SIGKILL to this process),
`kill@N` (at the N-th time the point is reached) or `sleep:MILLISECONDS`. Unset, as in production, reaching a point
costs one look-up in an empty dict.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

VARIABLE: Final = "DSPY_REGISTRY_FAILPOINTS"
NAMES: Final = ("before_odd_word", "before_commit", "before_even_word", "before_acknowledgement")
OF_AN_UPGRADE: Final = ("before_backup", "before_building", "before_replacing", "before_opening")
OF_A_CLUSTER: Final = ("after_upload", "after_decision", "before_copying", "before_following")
_ALL: Final = (*NAMES, *OF_AN_UPGRADE, *OF_A_CLUSTER)


def parse(text: str) -> dict[str, str]:
    """The actions by name. Raises ValueError for a name that does not exist."""
    actions = dict(pair.split("=", 1) for pair in text.split(",") if pair)
    unknown = sorted(set(actions).difference(_ALL))
    if unknown:
        raise ValueError(f"{VARIABLE}: no failpoint is named {', '.join(unknown)}; there are {_ALL}")
    return actions


_actions: Final = parse(os.environ.get(VARIABLE, ""))
_passed: Final[dict[str, int]] = {}


def reach(name: str) -> None:
    """Do what is configured for this point: usually nothing."""
    if name in _actions:
        _act(name, _actions[name])


def _act(name: str, action: str) -> None:
    _passed[name] = _passed.get(name, 0) + 1
    verb, _, argument = action.replace("@", ":").partition(":")
    if verb == "sleep":
        time.sleep(float(argument) / 1000)
    elif _passed[name] == int(argument or 1):
        os.kill(os.getpid(), signal.SIGKILL)
