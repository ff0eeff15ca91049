"""A batch job: one answer for each line of a file, by whichever module the registry chooses.

DSPY_REGISTRY=/tmp/registry python examples/batch_job.py questions.txt
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from programs import TARGETS

from dspy_registry import Registry, RouteFailedError, Router, UsageReporter

THREADS = 4


def main(file: str) -> int:
    """Print an answer for each question; the number of those without one."""
    questions = [line.strip() for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
    failed = 0
    with Registry() as registry, UsageReporter() as reporter, ThreadPoolExecutor(THREADS) as threads:
        router = Router(registry, TARGETS, reporter)

        def ask(question: str) -> str | None:
            try:
                return str(router.call("question_answering", arguments={"question": question}, prefer="cost").value)
            except RouteFailedError as error:
                print(f"{question}: {error.message}", file=sys.stderr)
                return None

        for answer in threads.map(ask, questions):
            failed += answer is None
            if answer is not None:
                print(answer)
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(*sys.argv[1:]) else 0)
