"""The answers that the cluster keeps for clients of this host, so that a request sent again has its first answer."""

from __future__ import annotations

import msgspec

from dspy_registry.registry_store.protocol import Effect, Failed, Remembered, remembered_codec
from dspy_registry.writer.cluster.engine import Engine
from dspy_registry.writer.cluster.keys import Keys


async def stored_answers(engine: Engine, keys: Keys, format: int) -> list[tuple[bytes, tuple[Effect, ...]]]:
    """The last answers to each client, by client, those first that were given first. Raises CorruptRecordError."""
    found: list[tuple[bytes, Remembered]] = []
    after, more = b"", True
    while more:
        page = await engine.range_at(keys.answers, after)
        more = page.more
        for item in page.items:
            after = item.key
            client = item.key[len(keys.answers) :]
            found.append((client, remembered_codec.load(item.value, client, format)))
    return [(client, one.answers) for client, one in sorted(found, key=lambda pair: pair[1].revision)]


def visible(answer: Effect, revision: int) -> Effect:
    """An answer with this host's revision: the cluster keeps another number in its place."""
    return answer if isinstance(answer, Failed) else msgspec.structs.replace(answer, revision=revision)
