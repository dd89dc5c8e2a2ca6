#!/usr/bin/python3
"""Rolls out releases of {{ release_name }}: {{ release_name }}ctl --help."""

import sys

sys.path.insert(0, "/usr/local/lib/{{ release_name }}")
from release.cli import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
