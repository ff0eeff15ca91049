"""Metrics of the daemon, for Prometheus. Needs the extra [metrics]."""
