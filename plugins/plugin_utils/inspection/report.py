"""What an inspection finds, and the settings that it proposes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

# fine: works as it is. decided: Seedbed does something for it. needs: the user must do something first.
Kind = Literal["fine", "decided", "needs"]

FILE = "group_vars/ENV/app.yml"


@dataclass(frozen=True)
class Finding:
    """A statement about the project: its subject in a word or two, sentences with the remedy, the setting to write."""

    kind: Kind
    subject: str
    text: str
    setting: str = ""


@dataclass
class Proposal:
    """A value for a setting, and the comment that explains it."""

    value: Any
    why: str


@dataclass
class Report:
    """The findings of one project, and the settings that `make init` writes."""

    findings: list[Finding] = field(default_factory=list)
    settings: dict[str, Proposal] = field(default_factory=dict)
    # The app_* settings that the user has set already.
    given: Mapping[str, Any] = field(default_factory=dict)
    # Whether the proposals are written to the user's file, as `make init` does; else they are only read.
    writes: bool = False

    def fine(self, subject: str, text: str, setting: str = "") -> None:
        self._add(Finding("fine", subject, text, setting))

    def decided(self, subject: str, text: str, setting: str = "") -> None:
        self._add(Finding("decided", subject, text, setting))

    def needs(self, subject: str, text: str, setting: str = "") -> None:
        self._add(Finding("needs", subject, text, setting))

    def propose(self, setting: str, value: Any, why: str) -> None:
        """Propose a value. A list or mapping is added to what is proposed already."""
        known = self.settings.get(setting)
        if known is None:
            self.settings[setting] = Proposal(value, why)
            return
        if isinstance(value, dict):
            known.value = known.value | value
        elif isinstance(value, list):
            known.value = known.value + [item for item in value if item not in known.value]
        else:
            known.value = value
        if why not in known.why:
            known.why = f"{known.why} {why}"

    def require(self, subject: str, text: str, setting: str, value: Any) -> None:
        """Propose what is missing from a list or mapping of settings.

        The finding is "decided" where the proposal is written, "needs" where it is not, and left out when the setting
        has the value.
        """
        missing = self.missing(setting, value)
        if not missing:
            return
        self.propose(setting, missing, text)
        if not self.writes:
            self.needs(subject, f"{text} Add {shown(missing)} to {setting} in {FILE}.", setting)
        elif isinstance(missing, list):
            # The text of a list says what is missing, not what is done about it.
            self.decided(subject, f"{text} Proposed for {setting}: {shown(missing)}.", setting)
        else:
            self.decided(subject, text, setting)

    def choose(self, subject: str, text: str, setting: str, value: str) -> None:
        """Propose the value of a setting: "decided" where the proposal is written, "needs" where it is not."""
        self.propose(setting, value, text)
        if self.writes:
            self.decided(subject, text, setting)
        else:
            self.needs(subject, f"{text} Set {setting}: {value} in {FILE}.", setting)

    def advise(self, subject: str, text: str, setting: str, value: Any) -> None:
        """Propose what a list may lack: unlike `require`, a list in the user's file is complete as it is."""
        missing = self.missing(setting, value)
        if missing and not self.writes:
            self.decided(subject, f"{text} {setting} in {FILE} does not have {shown(missing)}, and is left as it is.")
        else:
            self.require(subject, text, setting, value)

    def missing(self, setting: str, value: Any) -> Any:
        """Return the part of a list or mapping that a setting lacks."""
        given = self.given.get(setting) or type(value)()
        if isinstance(value, dict):
            return {key: item for key, item in value.items() if key not in given}
        return [item for item in value if not has(given, item)]

    def _add(self, finding: Finding) -> None:
        if finding not in self.findings:
            self.findings.append(finding)


def has(given: Any, wanted: Any) -> bool:
    """Return whether a list contains an item; requirements are compared by name, a command may be part of another."""
    if not isinstance(wanted, str):
        return wanted in given
    if " " in wanted:
        return any(wanted in str(item) for item in given)
    return any(bare(wanted) == bare(str(item)) for item in given)


def bare(requirement: str) -> str:
    """Return the name of a requirement such as "Celery[redis]>=5.4", normalized."""
    for sign in "[<>=!~; @":
        requirement = requirement.partition(sign)[0]
    return requirement.strip().lower().replace("_", "-").replace(".", "-")


def shown(value: Any) -> str:
    """Return a list or mapping as a message shows it; a mapping as YAML, to be typed."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {quoted(item)}" for key, item in value.items())
    return ", ".join(str(item) for item in value)


def quoted(value: Any) -> str:
    """Return a value as YAML: text in quotes where YAML would read something else, such as a boolean."""
    try:
        is_plain = isinstance(value, str) and yaml.safe_load(value) == value
    except yaml.YAMLError:
        is_plain = False
    return value if is_plain else json.dumps(value, ensure_ascii=False, default=str)
