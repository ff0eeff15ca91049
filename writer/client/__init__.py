"""The clients of the writer daemon: changes, and the reporting of usage, from any process of the host."""
