"""The explorer of a host of a cluster, and nothing secret in it, in the metrics or in the status."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi")

from tests.support.etcd import etcd, host, needs_etcd, patient, section
from tests.support.explorer import explorer


@needs_etcd
def test_pages_show_the_cluster_and_its_hosts(tmp_path: Path) -> None:
    with etcd(tmp_path / "etcd") as cluster, host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b:
        patient(lambda: len(section(a)["hosts"]) == len(section(b)["hosts"]) == 2 and section(a)["leader"])
        cluster.put(b"/dspy-registry/d/r/wonders/acme.One", b"of another release")
        patient(lambda: section(a)["errors"] == 1)
        with explorer(a.path) as site:
            state = patient(lambda: site.json("/api/v1/state")["cluster"])
            assert (state["host_count"], state["set_aside_count"]) == (2, 1)
            assert state["cluster"] == section(a)["cluster"]
            page = site.get("/store").text
            for shown in ("The cluster", section(a)["host"], section(b)["host"], "(leads)", "wonders/acme.One"):
                assert shown in page
            assert "<dt>Cluster</dt>" in site.get("/").text
