#!/usr/bin/python
"""Write several files in one trip."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: templates
short_description: Render several templates and write them in one trip
description:
  - Does what M(ansible.builtin.template) does, for many files at the price of one. Here a further file costs nothing
    that a person would notice; as tasks or items of a loop each would cost two trips to the host.
  - Missing folders are made, with mode 0755. Options given beside O(files) hold for all of them.
options:
  files:
    description: The files, in the order in which they are written.
    type: list
    elements: dict
    required: true
    suboptions:
      src: {type: str, description: A template of the role.}
      content: {type: str, description: "The text itself, instead of a template."}
      link: {type: str, description: "Not a file, but a link that leads there."}
      absent: {type: bool, default: false, description: "Not a file: what is there goes."}
      vars: {type: dict, description: Variables of this template alone.}
      dest: {type: path, required: true, description: The file.}
      owner: {type: str, description: Its owner.}
      group: {type: str, description: Its group.}
      mode: {type: raw, description: "Its mode, quoted."}
      validate: {type: str, description: A command that must succeed before the file is replaced; %s is the new one.}
author: Seedbed
"""

EXAMPLES = r"""
- templates:
    owner: root
    group: root
    mode: "0644"
    files:
      - {src: web.service, dest: /etc/systemd/system/web.service}
      - {src: worker.service, dest: /etc/systemd/system/worker.service, vars: {queues: [default]}}
"""

RETURN = r"""
written:
  description: The files that are not what they were.
  type: list
  elements: str
"""


def read(path: str) -> str | None:
    """The text of a file, or None where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # noqa: PTH123
            return file.read()
    except FileNotFoundError:
        return None


def replace(module: AnsibleModule, file: dict[str, str]) -> None:
    """Put the new text in the file's place in one step, once it is found valid."""
    handle, new = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(file["content"])
    if file["validate"]:
        code, out, error = module.run_command(file["validate"] % new)
        if code != 0:
            module.fail_json(msg=f"{file['dest']} was not replaced, the new one is not valid: {out}{error}".strip())
    os.makedirs(os.path.dirname(file["dest"]), 0o755, exist_ok=True)  # noqa: PTH103, PTH120
    module.atomic_move(new, file["dest"])


def place_link(module: AnsibleModule, file: dict[str, str]) -> tuple[bool, dict[str, str]]:
    """Have a link, or nothing, in the file's place. Returns whether anything was different, and the difference."""
    place, wanted = Path(file["dest"]), file["link"]
    before = str(place.readlink()) if place.is_symlink() else "a file" if place.exists() else None
    if before != wanted and not module.check_mode:
        if wanted is None:
            place.unlink()
        else:
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            new = place.with_name(f"{place.name}.new")
            new.unlink(missing_ok=True)
            new.symlink_to(wanted)
            new.replace(place)
    names = {"before_header": str(place), "after_header": str(place)}
    return before != wanted, {"before": f"{before or 'nothing'}\n", "after": f"{wanted or 'nothing'}\n", **names}


def write(module: AnsibleModule, file: dict[str, str]) -> tuple[bool, dict[str, str]]:
    """Bring one file to its text, owner and mode. Returns whether anything was different, and the difference."""
    if file["link"] is not None or file["absent"]:
        return place_link(module, file)
    before = read(file["dest"])
    changed = before != file["content"]
    if changed and not module.check_mode:
        replace(module, file)
    if before is not None or not module.check_mode:
        attributes = module.load_file_common_arguments(file, path=file["dest"])
        changed = module.set_fs_attributes_if_different(attributes, changed)
    names = {"before_header": file["dest"], "after_header": file["dest"]}
    return changed, {"before": before or "", "after": file["content"], **names}


def main() -> None:
    file = {name: {"type": "str"} for name in ("content", "link", "owner", "group", "validate")}
    file |= {"absent": {"type": "bool", "default": False}}
    file |= {"dest": {"type": "path", "required": True}, "mode": {"type": "raw"}}
    module = AnsibleModule(
        argument_spec={"files": {"type": "list", "elements": "dict", "required": True, "options": file}},
        supports_check_mode=True,
    )
    results = {file["dest"]: write(module, file) for file in module.params["files"]}
    written = {dest: difference for dest, (changed, difference) in results.items() if changed}
    module.exit_json(changed=bool(written), written=list(written), diff=list(written.values()))


if __name__ == "__main__":
    main()
