"""What the steps of a deployment share, and what undoing them needs: also the context of a killed deployment."""

from __future__ import annotations

from typing import Any

from .. import causes
from ..application import Application
from ..host import Host
from ..settings import ReleaseError, Settings, say

# Lines of a log in which a cause is looked for.
LOG_LINES = 400


class Context:
    """A release on this host, and the persisted state of its deployment.

    state["previous"]         the release that was current before, or ""
    state["was_built"]        the release existed before: its folder is not removed
    state["steps"]            seconds that each completed step took
    state["stopped_consuming"] queues by node of the old workers that were told to stop consuming them
    state["draining"]         units that were told to stop; another deployment may begin before they have ended
    state["beat_stopped"]     beat belongs to another host now and was stopped here
    """

    def __init__(self, host: Host, release: str, state: dict[str, Any]) -> None:
        self.host = host
        self.settings = host.settings
        self.manager = host.manager
        self.release = release
        self.state = state
        self.application = Application(host, release)
        self.warnings: list[str] = []

    def use(self, settings: Settings) -> None:
        """Go on with other settings of the release."""
        self.settings = self.host.settings = settings

    @property
    def previous(self) -> str:
        return self.state.get("previous", "")

    def warn(self, text: str) -> None:
        self.warnings.append(text)
        say(f"Warning: {text}")

    def explain(self, units: list[str], reason: str) -> str:
        """Return the reason, and recent log lines of each failed process, or of all when none failed."""
        failed = self.manager.failed(units)
        logs = [
            f"Last log lines of {unit}:\n{self.manager.recent_logs([unit], 25 if failed else 8)}"
            for unit in failed or units
        ]
        return "\n".join([reason, *logs])

    def failure(self, units: list[str], reason: str) -> ReleaseError:
        """Return the error to raise when processes fail, with their recent log lines and the cause in them."""
        suspects = self.manager.failed(units) or units
        logs = self.manager.recent_logs(suspects, LOG_LINES, since=self.state.get("began", 0))
        return ReleaseError(self.explain(units, reason), output=logs, cause=self.memory_cause(suspects, logs))

    def memory_cause(self, units: list[str], logs: str = "") -> str:
        """Return a sentence if a process of these units was killed for memory, or ""."""
        if not units:
            return ""
        states = self.manager.states_of(units)
        killed = [state.unit for state in states if state.memory_kills] or units
        setting = (
            "app_web.memory_mb" if self.host.is_web(killed[0]) else f"memory_mb of {self.host.process_name(killed[0])}"
        )
        if any(state.memory_kills for state in states):
            logs = "killed by the OOM killer"
        return causes.killed_for_memory(logs, setting)
