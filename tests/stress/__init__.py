"""The fault suite: every fault that can be made on one machine, tried many times, and judged by one oracle.

    python -m tests.stress [--minutes N] [--only power_loss,…] [--seed N] [--case KEY] [--small]

What must hold after every fault: what was acknowledged is there; each batch is there whole or not at all; nobody's
revision goes back; nothing was read that was not committed; `check` is content or names the damage; no process died of
a signal that was not sent; every error is a RegistryError that says what happened and what to do.
"""
