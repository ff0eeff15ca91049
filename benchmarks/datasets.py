"""Registries and plain LMDB environments on disk, filled with the workload's modules."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lmdb

from benchmarks.workloads import CORE_NAMES, all_names, modules
from dspy_registry import ModuleInfo, Registry, RegistryWriter
from dspy_registry.registry_store.codec import encode

MAP_SIZE = 1 << 36


@dataclass(frozen=True)
class Dataset:
    """A folder, the names stored in it (core first), the seconds that filling it took, and the bytes of its records."""

    path: Path
    names: list[str]
    seconds: float
    record_bytes: int

    @property
    def file_bytes(self) -> int:
        """Size of the data file, in bytes."""
        return (self.path / "data.mdb").stat().st_size

    def warm(self) -> None:
        """Read the data file once, so that no disk is measured. On a host in use the file is in the page cache."""
        with (self.path / "data.mdb").open("rb") as file:
            while file.read(1 << 20):
                pass


def build(path: Path, size: int, progress: Callable[[float], None] = lambda _share: None) -> Dataset:
    """A registry of `size` modules, core included, loaded in one commit."""
    return build_from(path, list(modules(size)), progress)


def build_from(path: Path, infos: list[ModuleInfo], progress: Callable[[float], None]) -> Dataset:
    """A registry of core and these modules. `seconds` leaves out opening the writer, which stores core."""
    with RegistryWriter(path) as writer:
        start = time.perf_counter()
        if infos:
            writer.register_modules(infos, progress=lambda done, total: progress(done / total))
        seconds = time.perf_counter() - start
    record_bytes = sum(len(encode(info)) for info in [*core_modules(path), *infos])
    return Dataset(path, [*CORE_NAMES, *[info.name for info in infos]], seconds, record_bytes)


def core_modules(path: Path) -> list[ModuleInfo]:
    """The modules of core, as a registry stores them."""
    with Registry(path) as registry:
        return [registry[name] for name in CORE_NAMES]


def build_plain(path: Path, registry: Path, size: int) -> Dataset:
    """A plain LMDB environment: name to encoded record. It is written in key order, so that its pages are full."""
    path.mkdir(parents=True)
    pairs = sorted((info.name.encode(), encode(info)) for info in [*core_modules(registry), *modules(size)])
    env = lmdb.open(str(path), map_size=MAP_SIZE)
    start = time.perf_counter()
    with env.begin(write=True) as txn:
        txn.cursor().putmulti(pairs, append=True)
    seconds = time.perf_counter() - start
    env.close()
    return Dataset(path, all_names(size), seconds, sum(len(value) for _, value in pairs))
