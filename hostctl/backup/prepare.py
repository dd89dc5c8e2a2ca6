"""Create the repository, and begin the first backup: what roles/backup calls after PostgreSQL runs."""

from __future__ import annotations

from typing import Any

from ..host import Host
from ..settings import ReleaseError
from .configuration import Configuration
from .server import Server
from .ship import other_passphrases, shipped
from .state import State
from .tools import SECRETS_REMEDY, Repository, Target, ToolError, call, move_away


def prepare(host: Host, configuration: Configuration, *, upgraded: bool = False) -> dict[str, Any]:
    """Return whether anything was changed. Raises ReleaseError with what prevents backups.

    A cluster that was `upgraded` continues the backups of the one before it.
    """
    if not configuration.version:
        return {"changed": False}
    changed = restart(host, configuration)
    repository = Repository(configuration)
    info = repository.info()
    if not info["db"]:
        require_passphrases(configuration)
        repository.call("stanza-create", seconds=120)
        changed = True
    elif (found := repository.system_id(info)) == (present := system_id(configuration)):
        pass
    elif upgraded or repository.version(info) != configuration.version:
        # playbooks/upgrade-postgresql.yml has copied it.
        repository.call("stanza-upgrade", seconds=120)
        changed = True
    else:
        raise ReleaseError(
            f"{configuration.repository} has the backups of another database (system identifier {found}; this one is "
            f"{present}): it is a new one. To restore those backups: {configuration.program} backup "
            f"restore. To start again: {move_away(configuration.repository)} (as root on this server), then run "
            "playbooks/provision.yml."
        )
    if not repository.backups() and not is_beginning(configuration):
        call(["systemctl", "start", "--no-block", f"{configuration.name}-backup-database.service"], seconds=60)
        changed = True
    return {"changed": changed}


def require_passphrases(configuration: Configuration) -> None:
    """Raise ReleaseError if the target has backups that these passphrases do not open: the secrets were lost, too.

    Before this server has backups of its own. What else is wrong with the target, the runs of the timers say.
    """
    if not configuration.target:
        return
    try:
        record = shipped(Target(configuration))
    except ReleaseError:
        return
    if other := other_passphrases(configuration, record):
        raise ReleaseError(
            f"{configuration.target} has the backups of {record.get('host')}, up to {record.get('at')}, which the "
            f"passphrases here do not open ({', '.join(other)}). To restore them: {SECRETS_REMEDY}. If "
            "you do not need them, choose another folder in app_backup_target (or empty this one)."
        )


def restart(host: Host, configuration: Configuration) -> bool:
    """Restart PostgreSQL if it does not archive yet and no release serves; return whether that was done."""
    if Server(configuration).run("SHOW archive_mode") == "on" or host.current_release():
        return False
    call(["systemctl", "restart", configuration.service], seconds=300)
    return True


def system_id(configuration: Configuration) -> str:
    return Server(configuration).run("SELECT system_identifier FROM pg_control_system()")


def is_beginning(configuration: Configuration) -> bool:
    """Return whether the first backup is being made, or was just tried."""
    if State(configuration, "backups").read().get("problem"):
        return True
    try:
        state = call(
            ["systemctl", "show", "--property=ActiveState", "--value", f"{configuration.name}-backup-database.service"],
            seconds=30,
        )
    except ToolError:
        return False
    return state.strip() in ("activating", "active")
