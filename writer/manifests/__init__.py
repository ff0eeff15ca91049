"""Manifests: files that declare modules, aliases, implications and defaults, in force as soon as they are saved."""
