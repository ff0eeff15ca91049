"""`program`: published from the command line, shown, compared, and exported as DSPy loads it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.command import answer, run
from tests.support.compiled_programs import HERE, NAME, Qa, compiled


def test_a_program_is_published_shown_compared_and_exported(registry_folder: Path, tmp_path: Path) -> None:
    compiled(Qa(), "Be brief.").save(tmp_path / "state.json")
    publish = ("program", "publish", f"{HERE}:Qa", NAME, "--path", registry_folder, "--embedded")
    plain = answer(*publish, "--label", "live")
    learned = answer(*publish, "--label", "candidate", "--state", tmp_path / "state.json")
    assert (plain["version"], learned["version"]) == (1, 2)

    shown = answer("program", "show", f"{NAME}@candidate", "--path", registry_folder)
    assert shown["sha256"] == learned["digest"]
    assert shown["predictors"][0]["instructions"] == "Be brief."
    assert len(shown["predictors"][0]["demos"]) == 2
    assert "Be brief." in run("program", "show", f"{NAME}@candidate", "--path", registry_folder).stdout

    both = ("program", "diff", f"{NAME}@live", f"{NAME}@candidate", "--path", registry_folder)
    differing = run(*both, "--json")
    assert differing.returncode == 1
    assert {change["part"] for change in json.loads(differing.stdout)["changes"]} == {"instructions", "demos"}
    assert run("program", "diff", f"{NAME}@live", f"{NAME}@1", "--path", registry_folder).returncode == 0

    run("program", "export", f"{NAME}@candidate", tmp_path / "exported.json", "--path", registry_folder)
    loaded = Qa()
    loaded.load(tmp_path / "exported.json")
    assert loaded.dump_state() == compiled(Qa(), "Be brief.").dump_state()


def test_what_cannot_be_published_or_shown_is_told(registry_folder: Path) -> None:
    at = ("--path", registry_folder)
    assert run("program", "publish", f"{HERE}:Nobody", NAME, *at, "--embedded").returncode == 1
    done = run("program", "publish", "nowhere_at_all.app:qa", NAME, *at, "--embedded")
    assert done.returncode == 1
    assert "No module named 'nowhere_at_all'" in done.stderr
    assert "Nothing was changed. Set PYTHONPATH so that nowhere_at_all.app can be imported." in done.stderr
    assert run("program", "publish", "nonsense", NAME, *at, "--embedded").returncode == 2
    answer("program", "publish", f"{HERE}:Qa", NAME, *at, "--embedded")
    assert run("program", "show", "dspy.Predict", *at).returncode == 1
    assert run("program", "show", f"{NAME}@nowhere", *at).returncode == 1
