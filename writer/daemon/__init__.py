"""The writer daemon: requests over a Unix socket, committed in groups by the one thread that writes."""
