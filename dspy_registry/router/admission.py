"""What an attempt holds while it runs: its calls under limits, and the right to probe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dspy_registry.readers.limits import LimitedCall
from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.errors import LimitReachedError
from dspy_registry.router.course import Refused, Try

if TYPE_CHECKING:
    from dspy_registry.readers.probes import Probe


class Admission:
    """What one attempt holds. End it when the call has ended, in whatever thread."""

    __slots__ = ("_limited", "_probe")

    def __init__(self, limited: LimitedCall | None, probe: Probe | None) -> None:
        self._limited = limited
        self._probe = probe

    def end(self, ok: bool = True) -> None:
        """Give back what is held. `ok` False: the call failed. A second call does nothing."""
        if self._probe is not None:
            self._probe.end(ok)
        if self._limited is not None:
            self._limited.end()


NOTHING_HELD = Admission(None, None)


def admit(registry: Registry, step: Try) -> Admission | Refused:
    """What the attempt needs. Refused: a limit is reached, or another process has the probe.

    Raises StoreError, StorePermissionError, UnknownModuleError.
    """
    if step.candidate.is_probe or registry.limits_of(step.candidate.name):
        return _admit(registry, step)
    return NOTHING_HELD


def _admit(registry: Registry, step: Try) -> Admission | Refused:
    call = _limited(registry, step)
    try:
        if call is not None:
            call.__enter__()
    except LimitReachedError as error:
        return Refused(error)
    return _with_probe(registry, step, call)


async def admit_async(registry: Registry, step: Try) -> Admission | Refused:
    """`admit`, waiting without blocking the loop."""
    call = _limited(registry, step)
    if call is not None and step.patience:
        from dspy_registry.readers.limits_async import AsyncLimitedCall

        try:
            await AsyncLimitedCall(call).__aenter__()
        except LimitReachedError as error:
            return Refused(error)
        return _with_probe(registry, step, call)
    return admit(registry, step)


def _limited(registry: Registry, step: Try) -> LimitedCall | None:
    """The limits of the module and its pool; None: there are none."""
    call = registry.limit(step.candidate.name, patience=step.patience)
    return call if call.is_limited else None


def _with_probe(registry: Registry, step: Try, call: LimitedCall | None) -> Admission | Refused:
    if not step.candidate.is_probe:
        return NOTHING_HELD if call is None else Admission(call, None)
    try:
        probe = registry.probe(step.candidate)
    except BaseException:
        Admission(call, None).end()
        raise
    if probe is None and not step.must:
        Admission(call, None).end()
        return Refused(None)
    return Admission(call, probe)
