"""Checks of the settings: their values (checks.py), their names (names.py) and where they are set (files.py)."""
