"""Is this host well? Checks that the doctor shows on one screen, and that the watch repeats every minute.

Each check returns a Finding, or None where it has nothing to look at on this host. Checks change nothing and print no
secret. They run beside each other, each with a limit of its own.
"""
