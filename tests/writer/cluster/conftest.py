"""One etcd for the tests of a file: starting one takes longer than most of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.etcd import EtcdCluster, etcd


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with etcd(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared: EtcdCluster) -> Iterator[EtcdCluster]:
    """The cluster without anything of ours in it."""
    yield shared
    shared.post("/v3/kv/deleterange", {"key": "Lw==", "range_end": "MA=="})  # from "/" to "0"
