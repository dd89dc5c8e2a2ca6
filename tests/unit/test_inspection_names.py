"""The settings that findings and proposals name exist, and each subject of a need is documented."""

from __future__ import annotations

import re

import yaml
from project import ROOT

INSPECTION = sorted((ROOT / "plugins/plugin_utils/inspection").glob("*.py"))
SPEC = ROOT / "roles/preflight/meta/argument_specs.yml"


def test_every_setting_that_the_inspection_names_exists() -> None:
    known = set(yaml.safe_load(SPEC.read_text())["argument_specs"]["settings"]["options"])
    for path in ROOT.glob("group_vars/all/*.yml"):
        known |= set(yaml.safe_load(path.read_text()))
    named = {name for path in INSPECTION for name in re.findall(r"(?<![\w.])app_[a-z_]+\b(?![(/.])", path.read_text())}
    assert named
    assert named - known == set()
