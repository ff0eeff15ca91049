"""Repairing a damaged registry: what can still be read goes into a new one."""
