"""A reporter's connection to the writer daemon.

A connection that worked before may be to a daemon that was restarted since. So when it fails, a new one is tried, once
and within the same time limit: the end of the process may be next. A batch that still fails is sent later.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from dspy_registry.registry_store import wire_errors
from dspy_registry.registry_store.errors import InvalidArgumentError, RegistryError, WriterTimeoutError
from dspy_registry.registry_store.paths import socket_path
from dspy_registry.registry_store.protocol import BatchProgress, Failed, ReportedOutcome
from dspy_registry.writer.client import calls
from dspy_registry.writer.client.calls import Call
from dspy_registry.writer.client.session import Deadline, Session, unavailable


class ReportLink:
    """A link for one thread. `send` connects, at first and after the connection was lost."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._session: _Session | None = None

    def send(self, batch: bytes, timeout: float) -> RegistryError | None:
        """Have the daemon merge a batch. None: it is durable. Otherwise the daemon's refusal of this batch.

        `timeout` is in seconds. Raises WriterUnavailableError, WriterTimeoutError or another RegistryError when the
        batch should be sent again later.
        """
        return self._sent(calls.report_usage(batch), timeout)

    def tell(self, outcomes: Sequence[ReportedOutcome], timeout: float) -> None:
        """Have the daemon count how calls ended. `timeout` and errors are as for `send`; a refusal is raised."""
        refused = self._sent(calls.report_outcomes(tuple(outcomes)), timeout)
        if refused is not None:
            raise refused

    def _sent(self, call: Call, timeout: float) -> RegistryError | None:
        deadline = Deadline(timeout)
        try:
            if self._session is not None:
                with contextlib.suppress(ConnectionError):
                    return self._session.send(call, deadline)
                self.close()
            self._session = _Session(self._folder, socket_path(self._folder))
            return self._session.send(call, deadline)
        except RegistryError:
            self.close()
            raise
        except TimeoutError as error:
            self.close()
            raise WriterTimeoutError(f"the writer daemon did not answer within {timeout:g} s.") from error
        except OSError as error:
            self.close()
            raise unavailable(self._folder, lost=True) from error

    def close(self) -> None:
        """End the connection, if there is one. In a forked child, the parent keeps its connection."""
        session, self._session = self._session, None
        if session is not None:
            session.close()


class _Session(Session):
    """A session that tries once, and does not wait longer while the daemon works: the batch can be sent later."""

    def _progressed(self, call: Call, answer: BatchProgress, deadline: Deadline) -> None:
        return

    def send(self, call: Call, deadline: Deadline) -> RegistryError | None:
        if self._socket is None and not self._try_to_connect(deadline):
            raise unavailable(self._folder, lost=False)
        self._last += 1
        answer = self._exchange(call, self._last, deadline)
        if not isinstance(answer, Failed):
            return None
        error = wire_errors.unpack(answer)
        if isinstance(error, InvalidArgumentError):
            return error
        raise error
