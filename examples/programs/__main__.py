"""Two workers run a compiled program by its label, and a guarded rollout gives them the next version.

    python examples/programs

starts a daemon and the workers in a temporary folder. It needs DSPy, and no network.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
from pathlib import Path

import dspy
from acme_qa import LIVE_LABEL, NAME, Qa, model
from worker import work

from dspy_registry import Registry, WriterClient
from dspy_registry.integrations.dspy import publish
from dspy_registry.registry_store.rollout import Plan
from dspy_registry.writer.daemon.lifecycle import serve

TRAINSET = [dspy.Example(question=f"What is {n} + {n}?", answer=f"{n + n}").with_inputs("question") for n in range(8)]


def main() -> None:
    """Publish a version, start the workers, publish a better one, and roll it out in three steps of two seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "registry")
        daemon = multiprocessing.Process(target=serve, args=(path,), daemon=True)
        daemon.start()
        Registry(path, wait=10).close()
        with WriterClient(path) as client, dspy.context(lm=model()):
            publish(Qa(), NAME, client=client, label=LIVE_LABEL)
            has_answered = multiprocessing.Barrier(3)
            workers = [multiprocessing.Process(target=work, args=(path, number, has_answered)) for number in (1, 2)]
            for worker in workers:
                worker.start()
            has_answered.wait(60)
            optimizer = dspy.LabeledFewShot(k=4)
            better = publish(optimizer.compile(Qa(), trainset=TRAINSET), NAME, client=client, label="candidate")
            print(f"version {better.version} is published as candidate; a rollout begins", flush=True)
            client.start_rollout(NAME, better.version, label=LIVE_LABEL, plan=Plan((10.0, 50.0, 100.0), every=2.0))
        for worker in workers:
            worker.join(60)
        daemon.terminate()
        daemon.join()
        sys.exit(max(worker.exitcode or 0 for worker in workers))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
