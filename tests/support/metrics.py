"""A daemon that answers Prometheus, and what it answers."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.support.command import COMMAND

Values = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Measured:
    """A daemon and the address of its metrics."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def text(self) -> str:
        answer = httpx.get(self.url, timeout=60)
        assert answer.status_code == 200
        return answer.text

    def values(self) -> Values:
        """Every sample by name and labels."""
        return parsed(self.text())

    def value(self, name: str, **labels: str) -> float:
        return self.values()[name, frozenset(labels.items())]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def parsed(text: str) -> Values:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@contextmanager
def measured_daemon(path: Path, *options: str, address: str = "127.0.0.1:0") -> Iterator[Measured]:
    """`dspy-registry serve --metrics`; unless it was killed, it must end well when it is asked to."""
    command = [*COMMAND, "serve", "--path", str(path), "--metrics", address, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        lines = [process.stderr.readline()]
        while lines[-1] and " serves " not in lines[-1]:
            lines.append(process.stderr.readline())
        (url,) = (word for line in lines for word in line.split() if word.startswith("http://"))
        yield Measured(process, url)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
