"""Remedies that errors of several places share. This module imports nothing: without a free descriptor none can be."""

from typing import Final

FREE_SPACE: Final = "Free disk space, then repeat the change."
TOO_MANY_FILES: Final = "Raise the limit of open files (`ulimit -n`, LimitNOFILE= in a unit), or close some of them."
