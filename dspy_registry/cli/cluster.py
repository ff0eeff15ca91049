"""`cluster`, and the options of `serve` that name a cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dspy_registry.cli import console, tables
from dspy_registry.registry_store.wording import counted

if TYPE_CHECKING:
    from dspy_registry.writer.cluster.options import ClusterOptions
    from dspy_registry.writer.daemon.lifecycle import Daemon

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
PASSWORD: Final = "DSPY_REGISTRY_CLUSTER_PASSWORD"


def cluster_options(command: Decorated) -> Decorated:
    """`--cluster`, and how to get in; give them to `chosen`."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for name, kind, metavar, told in (
        ("password-file", file, "FILE", f"Its password; else ${PASSWORD}."),
        ("user", str, "NAME", "A user of etcd."),
        ("key", file, "FILE", "The key of that certificate."),
        ("cert", file, "FILE", "This host's certificate."),
        ("ca", file, "FILE", "Certificates to trust, instead of the system's."),
        ("prefix", str, "TEXT", "What all keys begin with; /dspy-registry/ unless it is given."),
    ):
        variable = f"DSPY_REGISTRY_CLUSTER_{name.replace('-', '_').upper()}"
        option = click.option(
            f"--cluster-{name}", type=kind, metavar=metavar, envvar=variable, show_envvar=True, help=told
        )
        command = option(command)
    return click.option(
        "--cluster",
        metavar="URL,…",
        envvar="DSPY_REGISTRY_CLUSTER",
        show_envvar=True,
        help="Follow the etcd cluster with these nodes.",
    )(command)


def chosen(
    *,
    cluster: str | None,
    cluster_prefix: str | None,
    cluster_ca: Path | None,
    cluster_cert: Path | None,
    cluster_key: Path | None,
    cluster_user: str | None,
    cluster_password_file: Path | None,
) -> ClusterOptions | None:
    """The cluster that the options name; None: they name none. Raises click.UsageError, InvalidArgumentError."""
    given = (cluster_prefix, cluster_ca, cluster_cert, cluster_key, cluster_user, cluster_password_file)
    if cluster is None:
        if any(value is not None for value in given):
            raise click.UsageError("the options --cluster-… need --cluster.")
        return None
    from dspy_registry.writer.cluster.options import DEFAULT_PREFIX, ClusterOptions, check_options

    password = None
    if cluster_user is not None:
        password = os.environ.get(PASSWORD)
        if cluster_password_file is not None:
            password = cluster_password_file.read_text(encoding="utf-8").rstrip("\n")
    options = ClusterOptions(
        endpoints=tuple(part.strip() for part in cluster.split(",") if part.strip()),
        prefix=cluster_prefix or DEFAULT_PREFIX,
        ca=cluster_ca,
        cert=cluster_cert,
        key=cluster_key,
        user=cluster_user,
        password=password,
    )
    check_options(options)
    return options


def following(options: ClusterOptions) -> Callable[[Daemon], None]:
    """The daemon's extension that follows this cluster. Raises InvalidArgumentError where aiohttp is missing."""
    from dspy_registry.writer.cluster.attach import attach_cluster

    def attach(daemon: Daemon) -> None:
        attach_cluster(daemon, options)

    return attach


def cluster_extensions(named: dict[str, Any]) -> list[Callable[[Daemon], None]]:
    """The daemon's extensions of these options of `serve`, which are taken out of `named`. Empty: no cluster."""
    options = chosen(**{key: named.pop(key) for key in tuple(named) if key.startswith("cluster")})
    return [] if options is None else [following(options)]


@click.group("cluster", short_help="Share one registry between hosts: join, leave, status, seed.")
def cluster() -> None:
    """Share one registry between hosts, on etcd. docs/cluster.md says what this promises.

    \b
    dspy-registry cluster seed --cluster https://etcd-1:2379     an existing registry becomes the first content
    dspy-registry serve --cluster https://etcd-1:2379            and so on every host
    """


@cluster.command("join", short_help="Let a registry follow a cluster.")
@cluster_options
@click.option("--discard", is_flag=True, help="Drop what clients registered here and the cluster does not have.")
@console.path_option
@console.json_option
def join(path: Path | None, as_json: bool, discard: bool, **named: Any) -> None:
    """Let this registry follow a cluster, before its daemon is started with --cluster.

    `serve --cluster` joins by itself where clients of this host have registered nothing of their own.
    """
    from dspy_registry.writer.cluster import administration

    done = administration.join(_needed(named), path, discard=discard)
    _print(
        f"follows cluster {done.cluster} as host {done.host}, {counted(done.records, 'record')} discarded",
        done,
        as_json,
    )


@cluster.command("leave", short_help="End a registry's membership in its cluster.")
@console.path_option
@console.json_option
def leave(path: Path | None, as_json: bool) -> None:
    """End the membership. What was taken over stays, as records of this host. The daemon must not run."""
    from dspy_registry.writer.cluster import administration

    done = administration.leave(path)
    _print(f"has left cluster {done.cluster}, and keeps {counted(done.records, 'record')}", done, as_json)


@cluster.command("seed", short_help="Put what this host has into the cluster.")
@cluster_options
@console.path_option
@console.json_option
def seed(path: Path | None, as_json: bool, **named: Any) -> None:
    """Put into the cluster what clients of this registry registered, and join. The daemon must not run.

    Run it once, on the one host whose registry is to become the first content. When it was cut short, run it again.
    """
    from dspy_registry.writer.cluster import administration

    done = administration.seed(_needed(named), path)
    _print(f"has seeded cluster {done.cluster} with {counted(done.records, 'record')}", done, as_json)


@cluster.command("status", short_help="Show how this host follows its cluster.")
@console.path_option
@console.json_option
def status(path: Path | None, as_json: bool) -> int:
    """Show what the daemon says of the cluster. Exits with 1 when this host is cut off, or has set something aside."""
    from dspy_registry.writer.client.client import WriterClient

    with WriterClient(path) as client:
        found = client.status().sections.get("cluster")
    if found is None:
        raise click.ClickException("the daemon of this registry follows no cluster: start it with --cluster.")
    if as_json:
        console.print_json(found)
    else:
        tables.print_fields(_rows(found))
    return 1 if found["error"] or found["errors"] else 0


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in found.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                yield (
                    f"{key}.{name}",
                    inner if isinstance(inner, str) else ", ".join(f"{k} {v}" for k, v in inner.items()),
                )
        else:
            yield key, "-" if value in (None, "") else value


def _needed(named: dict[str, Any]) -> ClusterOptions:
    options = chosen(**named)
    if options is None:
        raise click.UsageError("--cluster names the nodes, and is missing.")
    return options


def _print(said: str, done: Any, as_json: bool) -> None:
    import msgspec

    if as_json:
        console.print_json(msgspec.structs.asdict(done))
    else:
        console.say(f"this registry {said}")
