"""Names, keys and limits of what is on disk. docs/design.md has diagrams of it.

A change that an older release cannot read needs a new FORMAT_VERSION.
"""

from __future__ import annotations

from typing import Final

FORMAT_VERSION: Final = 2  # of what this release creates
FIRST_FORMAT: Final = 1  # the oldest that it reads and writes

# Files in the registry's folder. LMDB's own are data.mdb and lock.mdb.
DATA_FILE: Final = "data.mdb"
LOCK_FILE: Final = "lock.mdb"
REVISION_FILE: Final = "revision"
WRITER_LOCK_FILE: Final = "writer.lock"
SOCKET_FILE: Final = "writer.sock"

# Named databases.
META: Final = b"meta"
MODULES: Final = b"modules"  # name -> record
SEQUENCES: Final = b"sequences"  # row of registration sequences -> their names
POSTINGS: Final = b"postings"  # term, block -> bitmap of registration sequences
ALIASES: Final = b"aliases"  # alias -> name
LAYERS: Final = b"layers"  # name, source -> what that source declares
CHANGES: Final = b"changes"  # revision -> what that commit changed
HISTORY: Final = b"history"  # name, version -> record that was replaced
REQUESTS: Final = b"requests"  # client id -> its last answers
USAGE: Final = b"usage"  # name -> lifetime totals; name, version -> statistics of that version
LABELS: Final = b"labels"  # name, label -> versions
PROGRAMS: Final = b"programs"  # SHA-256, piece -> state of a program
POLICIES: Final = b"policies"  # source, pattern -> limits of calls
DATABASES_OF_FORMAT_1: Final = (
    META,
    MODULES,
    SEQUENCES,
    POSTINGS,
    ALIASES,
    LAYERS,
    CHANGES,
    HISTORY,
    REQUESTS,
    USAGE,
)
DATABASES: Final = (*DATABASES_OF_FORMAT_1, LABELS, PROGRAMS, POLICIES)
SEALED_ALONE: Final = (MODULES, HISTORY)  # records hold their name and version


# Keys of `meta`.
META_FORMAT: Final = b"format"  # plain ASCII digits, so that any release can read it
META_ID: Final = b"id"
META_STATE: Final = b"state"
META_VOCABULARY: Final = b"vocabulary"
META_CLUSTER: Final = b"cluster"  # how far this host has followed a cluster; absent: it belongs to none
META_GLOBAL: Final = b"cluster\0"  # and kind, key: what this host knows of a global record
META_ROLLOUT: Final = b"rollout\0"  # and name, label: a guarded rollout of that label
META_DEFAULTS: Final = b"defaults"  # rules for discovered modules; absent until some are declared

# Limits of what may be registered.
MAX_NAME_BYTES: Final = 255
MAX_TERM_BYTES: Final = 64
MAX_CAPABILITIES: Final = 64
MAX_DURATION_MS: Final = 30 * 24 * 60 * 60 * 1000
MAX_METADATA_DEPTH: Final = 32
MAX_RECORD_BYTES: Final = 1024 * 1024
MAX_RECORD_VALUES: Final = 8_192
"""Values in a record: texts, numbers, lists and mappings, however they are nested. Each takes a writer's time."""

MAX_ALIASES: Final = 65_536
MAX_ALIASES_OF_MODULE: Final = 64  # each change of the module lists them all

# Limits of the vocabulary. Every commit that changes a module expands capabilities with it.
MAX_IMPLYING_WORDS: Final = 1024  # of all sources together
MAX_IMPLIED_WORDS: Final = 64  # by one word, directly
MAX_REACHED_WORDS: Final = 256  # by one word, over any number of steps

# The largest numbers that the keys below have room for.
LAST_SEQUENCE: Final = 2**32 - 1
LAST_VERSION: Final = 2**32 - 1

# Bounds of what the registry keeps.
HISTORY_VERSIONS: Final = 16
CHANGES_KEPT: Final = 8192

# Limits of LMDB. The map takes address space, not disk. It is reserved at once, so readers never see it resized.
MAP_SIZE: Final = 1 << 40
SMALLEST_MAP_SIZE: Final = 1 << 28
MAX_READERS: Final = 4096

# A posting is cut into blocks of 2**16 consecutive sequences. This is one container of a roaring bitmap, so a block has
# 8 KiB at most. One registration rewrites one block per term.
BLOCK_BITS: Final = 16


def sequence_row_key(row: int) -> bytes:
    """Key of `sequences`: 4 bytes, big-endian, so keys sort in registration order."""
    return row.to_bytes(4, "big")


def posting_key(term: bytes, block: int) -> bytes:
    """Key of `postings`. A term holds no control character, so a zero byte ends it, and its blocks are adjacent."""
    return b"%b\0%b" % (term, block.to_bytes(2, "big"))


def split_posting_key(key: bytes) -> tuple[bytes, int] | None:
    """(term, block) of a key of `postings`; None: the key is malformed."""
    if len(key) < 4 or key[-3] or b"\0" in key[:-3]:
        return None
    return key[:-3], int.from_bytes(key[-2:], "big")


def revision_key(revision: int) -> bytes:
    """Key of `changes`: 8 bytes, big-endian, so keys sort by age."""
    return revision.to_bytes(8, "big")


def versioned_key(name: str, version: int) -> bytes:
    """Key of `history` and `usage`: all versions of one name are adjacent, oldest first."""
    return versioned_prefix(name) + version.to_bytes(4, "big")


def versioned_prefix(name: str) -> bytes:
    """What the keys of all versions of one name begin with."""
    return name.encode() + b"\0"


def layer_key(name: str, source: str) -> bytes:
    """Key of `layers`: all sources of one name are adjacent."""
    return name.encode() + b"\0" + source.encode()


def policy_key(source: str, pattern: str) -> bytes:
    """Key of `policies`: all patterns of one source are adjacent."""
    return source.encode() + b"\0" + pattern.encode()


def label_key(name: str, label: str) -> bytes:
    """Key of `labels`: all labels of one name are adjacent."""
    return name.encode() + b"\0" + label.encode()
