"""The demo: the registry at work on real input, each part in a separate process."""
