"""The stage in which a manifest is saved, spoilt and mended while the daemon follows its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from fnmatch import fnmatchcase
from typing import Any, Final

from dspy_registry.demo.process import DemoError, ask, told
from dspy_registry.demo.stage import Demo
from dspy_registry.demo.witness import Witness

MODULE: Final = "acme.Digest"
ALIAS: Final = "digest"
MATCH: Final = "dspy.Bootstrap*"
FILE: Final = "acme.toml"
MANIFEST: Final = f"""\
[[modules]]
name = "{MODULE}"
category = "prediction"
capabilities = ["summarisation", "reasoning"]
requirements = {{memory = "medium", compute = "low"}}
estimated_duration = 400

[aliases]
{ALIAS} = "{MODULE}"

[[defaults]]
match = "{MATCH}"
estimated_duration = 60000
"""
SPOILT: Final = MANIFEST.replace('"medium"', '"lots"')
MENDED: Final = MANIFEST.replace("= 400", "= 350")
SECONDS_TO_BE_TOLD: Final = 30.0


def follow_manifests(demo: Demo) -> None:
    """From a save to what a reader sees, with a mistake on the way."""
    demo.title(f"The daemon follows the manifests in {demo.manifests}")
    with closing(Witness(demo.registry, demo.folder, demo.client.status().revision)) as witness:
        witness.wait_until_ready()
        visible_after = _save(demo, MANIFEST, witness)
        demo.say(f"  {FILE} is saved: a reader process sees it {visible_after} ms later")
        declared, matched = _declared(demo), _matched(demo)
        errors = _spoil(demo, declared)
        mended_after = _save(demo, MENDED, witness)
    _until_told(demo, lambda errors: not errors)
    demo.say(f"  mended: a reader process sees it {mended_after} ms later, and no error is left\n")
    demo.facts["manifests"] = {
        "visible_after_ms": visible_after,
        "declared": declared,
        "matched": matched,
        "errors": errors,
        "mended_after_ms": mended_after,
    }


def _save(demo: Demo, text: str, witness: Witness) -> float:
    """Milliseconds from the save until a reader has seen the module change."""
    (demo.manifests / FILE).write_text(text, encoding="utf-8")
    saved = time.perf_counter()
    witness.wait_for(MODULE)
    return round((time.perf_counter() - saved) * 1000, 1)


def _declared(demo: Demo) -> dict[str, Any]:
    """The module, as a reader finds it by its alias."""
    found: dict[str, Any] = ask(demo.registry, demo.folder, "get", ALIAS)
    demo.say(f"    {ALIAS} is {found['name']}: {', '.join(found['capabilities'])}, {found['estimated_duration']} ms")
    if found["name"] != MODULE:
        demo.failures.append(f"the alias {ALIAS} leads to {found['name']}")
    return found


def _matched(demo: Demo) -> dict[str, Any] | None:
    """A discovered module for which the rule holds; None when there is none, as without DSPy."""
    name = next((name for name in demo.steady if fnmatchcase(name, MATCH)), None)
    if name is None:
        demo.say(f"    the rule for {MATCH} waits for modules to be discovered")
        return None
    found = ask(demo.registry, demo.folder, "get", name, "--explain")
    duration, source = found["estimated_duration"], found["explained"]["estimated_duration"]
    demo.say(f"    {name}: estimated_duration {duration} ms, from {source}")
    if source != f"defaults:{FILE}":
        demo.failures.append(f"{name} has its estimated_duration from {source}, not from the rule for {MATCH}")
    return {"name": name, "estimated_duration": duration, "source": source}


def _spoil(demo: Demo, before: dict[str, Any]) -> list[Any]:
    """The errors of an edit with a mistake, which changes nothing."""
    (demo.manifests / FILE).write_text(SPOILT, encoding="utf-8")
    errors = _until_told(demo, bool)
    demo.say("  saved with a mistake: `dspy-registry status` says")
    for line in told(demo.registry, demo.folder, "status").splitlines():
        if line.startswith("manifests.errors"):
            demo.say(f"    {line}")
    after = ask(demo.registry, demo.folder, "get", ALIAS)
    if after != before:
        demo.failures.append(f"a manifest in error changed {before} to {after}")
    kept = after["provenance"]
    demo.say(f"    what it declared stays: version {kept['version']}, of revision {kept['revision']}")
    return errors


def _until_told(demo: Demo, is_expected: Callable[[list[Any]], bool]) -> list[Any]:
    """The errors of manifests, once the daemon's status has those expected. Raises DemoError."""
    deadline = time.monotonic() + SECONDS_TO_BE_TOLD
    while time.monotonic() < deadline:
        errors: list[Any] = demo.client.status().sections["manifests"]["errors"]
        if is_expected(errors):
            return errors
        time.sleep(0.02)
    raise DemoError(f"after {SECONDS_TO_BE_TOLD:.0f} s the daemon's status has these errors of manifests: {errors}")
