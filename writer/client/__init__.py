"""The clients of the writer daemon, for any process of the host: they send changes and report usage."""
