"""The command line `dspy-registry`: one file for each command or group of them, loaded when it runs."""
