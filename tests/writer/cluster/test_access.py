"""Certificates, users and prefixes, on a real etcd; and that nothing secret is told."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Registry, errors
from dspy_registry.writer.cluster.options import ClusterOptions, check_options
from tests.support.daemon_process import daemon_of, module
from tests.support.etcd import b64, etcd, host, needs_etcd, patient, section

_OPENSSL = shutil.which("openssl")
needs_openssl = pytest.mark.skipif(_OPENSSL is None, reason="openssl is not installed: it makes the certificates")


def served(folder: Path, urls: list[str], **options: str) -> Any:
    return daemon_of("tests.support.etcd", "serve_cluster", folder, urls, options)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that vouches for itself, and one without a CN for clients that it signed."""
    folder = tmp_path / "certificates"
    folder.mkdir()
    until = str((datetime.date(2100, 1, 1) - datetime.date.today()).days)

    def make(*arguments: str) -> None:
        subprocess.run([str(_OPENSSL), *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", until)
    # Since Python 3.13 the authority must say what its key may be used for.
    make(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/O=ca", "-addext", "keyUsage=critical,keyCertSign")
    for name in ("server", "client"):
        usage = "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
        (folder / "usage").write_text(usage, encoding="ascii")
        make("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/O=us")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", until, "-extfile", "usage")
        make("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder


@needs_etcd
@needs_openssl
def test_with_certificates(tmp_path: Path, certificates: Path) -> None:
    files = "ca.pem", "server.pem", "server.key", "client.pem", "client.key"
    named = {name: str(certificates / name) for name in files}
    options = ("--cert-file", named["server.pem"], "--key-file", named["server.key"])
    options += ("--trusted-ca-file", named["ca.pem"], "--client-cert-auth")
    with etcd(tmp_path / "etcd", options=options, scheme="https") as cluster:
        with served(tmp_path / "without", cluster.urls, ca=named["ca.pem"]) as cut_off:
            patient(lambda: section(cut_off)["error"])
        ours = {"ca": named["ca.pem"], "cert": named["client.pem"], "key": named["client.key"]}
        with served(tmp_path / "with", cluster.urls, **ours) as following, following.client() as client:
            client.register_module(module("acme.One"))
            with Registry(following.path) as registry:
                assert "acme.One" in registry


@pytest.mark.full
@needs_etcd
def test_with_a_user_that_may_use_the_prefix_alone(tmp_path: Path) -> None:
    """These are the least rights: read and write below the prefix."""
    secret = "not to be told"
    with etcd(tmp_path / "etcd") as cluster:
        cluster.post("/v3/auth/user/add", {"name": "root", "password": "r"})
        cluster.post("/v3/auth/role/add", {"name": "root"})
        cluster.post("/v3/auth/user/grant", {"user": "root", "role": "root"})
        cluster.post("/v3/auth/user/add", {"name": "registry", "password": secret})
        cluster.post("/v3/auth/role/add", {"name": "registry"})
        right = {"permType": "READWRITE", "key": b64(b"/ours/"), "range_end": b64(b"/ours0")}
        cluster.post("/v3/auth/role/grant", {"name": "registry", "perm": right})
        cluster.post("/v3/auth/user/grant", {"user": "registry", "role": "registry"})
        cluster.post("/v3/auth/enable", {})
        with served(tmp_path / "wrong", cluster.urls, prefix="/ours/", user="registry", password="wrong") as cut_off:
            assert "admit" in patient(lambda: section(cut_off)["error"])
        with served(tmp_path / "a", cluster.urls, prefix="/ours/", user="registry", password=secret) as a:
            with a.client() as client:
                client.register_module(module("acme.One"))
            told = section(a)
            assert told["error"] == ""
            assert secret not in repr(told)


@pytest.mark.full
@needs_etcd
def test_prefixes_keep_registries_apart(tmp_path: Path) -> None:
    with etcd(tmp_path / "etcd") as cluster, served(tmp_path / "b", cluster.urls, prefix="/other/") as other:
        with host(tmp_path / "a", cluster) as a, a.client() as client:
            client.register_module(module("acme.One"))
        with other.client() as client:
            client.register_module(module("acme.Two"))
        with Registry(other.path) as registry:
            assert "acme.One" not in registry


@pytest.mark.full
def test_what_is_wrong_with_the_options_is_told_at_once() -> None:
    endpoints = "etcd:2379", "https://u:p@etcd:2379"
    options = ClusterOptions(endpoints=endpoints, prefix="no end", user="u", cert=Path("x"))
    with pytest.raises(errors.InvalidArgumentError) as raised:
        check_options(options)
    for part in ("'etcd:2379'", "holds a user", "prefix", "password", "its key", "no file x"):
        assert part in raised.value.message
    assert "u:p" not in raised.value.message


def test_the_password_is_in_no_text_of_the_options() -> None:
    assert "hidden" not in repr(ClusterOptions(endpoints=("http://etcd:2379",), user="u", password="hidden"))
