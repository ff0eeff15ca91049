"""Manifests: files that declare modules, aliases, implications and defaults, in force as soon as they are saved."""

from __future__ import annotations

from writer.manifests.attach import TreeReport, attach_manifests, validate_tree
from writer.manifests.records import ManifestError
from writer.manifests.schema import manifest_schema

__all__ = ["ManifestError", "TreeReport", "attach_manifests", "manifest_schema", "validate_tree"]
