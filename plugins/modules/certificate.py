#!/usr/bin/python
"""Keep the certificate that a server shows, from one of three sources."""

from __future__ import annotations

import errno
import http.client
import ipaddress
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterable
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: certificate
short_description: Keep the certificate that a server shows
description:
  - Keeps V(fullchain.pem) and V(privkey.pem) in a folder. They are always a pair, so that the server can start,
    and never changed without need.
  - With O(provider=acme) they are links to what certbot keeps and renews. The server must run before a CA can ask it,
    so O(issue=false) only sees to it that there is a certificate at all, and O(issue=true) asks for the CA's.
  - A provider that is not used any longer leaves nothing behind.
options:
  provider: {type: str, required: true, choices: [self_signed, acme, files], description: Where it comes from.}
  issue: {type: bool, default: false, description: "With V(acme): ask for the certificate if it is not there yet."}
  directory: {type: path, required: true, description: The folder.}
  domains: {type: list, elements: str, required: true, description: Names and addresses of the site.}
  certificate: {type: str, default: "", description: "With V(files): the certificate and its chain, as PEM."}
  key: {type: str, default: "", description: "With V(files): its key, as PEM."}
  lineage: {type: str, default: site, description: What certbot calls the certificate.}
  email: {type: str, default: "", description: The ACME account's address.}
  server: {type: str, default: "", description: The ACME server's directory.}
  webroot: {type: path, default: "", description: The folder whose challenges the server shows on port 80.}
  reload: {type: str, default: "true", description: A command that has the server read the certificate.}
  self_check: {type: bool, default: true, description: "Ask only for names at which this host sees itself?"}
author: Seedbed
"""

RETURN = r"""
did: {description: What was changed, type: list, elements: str}
message: {description: What a person should know, type: str}
advice:
  description: >-
    What should follow the message: V(dns) how to lead the names here, and how to run this again; V(again) only the
    latter, when what the message names has been put right; empty where the message says all.
  type: str
"""

DAY = 24 * 3600
SELF_SIGNED_DAYS = 397
# A self-signed one is made anew so early; others are renewed by certbot or by hand before that.
RENEW_SECONDS, WARN_SECONDS = 30 * DAY, 14 * DAY
LETSENCRYPT = Path("/etc/letsencrypt")
CHALLENGES = ".well-known/acme-challenge"
# What a host that has no IPv6 meets at such an address, whichever way it has none.
NO_IPV6 = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


def canonical(name: str) -> str:
    """A name or address in its one form."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def is_address(name: str) -> bool:
    return re.fullmatch(r"[0-9.]+|.*:.*", name) is not None


def covers(names: Iterable[str], wanted: str) -> bool:
    """Whether a certificate for these names is one for another; `*` stands for one label."""
    return bool({wanted, "*." + wanted.partition(".")[2]} & set(names))


def resolvers(text: str) -> list[str]:
    """The IPv4 addresses of the name servers in a resolv.conf."""
    return re.findall(r"^nameserver\s+([\d.]+)(?=\s|$)", text, re.M)


def fetch(address: str, name: str, path: str) -> str:
    """What is at http://NAME/PATH at one of its addresses, or why that cannot be said. Raises OSError."""
    connection = http.client.HTTPConnection(address, 80, timeout=5)
    try:
        connection.request("GET", path, headers={"Host": name})
        answer = connection.getresponse()
        return answer.read(200).decode(errors="replace") if answer.status == 200 else f"status {answer.status}"
    except http.client.HTTPException as error:
        return type(error).__name__
    finally:
        connection.close()


class Certificate:
    """The certificate in the folder.

    `did` is what was changed, or in check mode would be; `message` is for a person, and `advice` is what to add to it.
    """

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.dry = module.check_mode
        self.wanted = [canonical(name) for name in module.params["domains"]]
        self.folder = Path(module.params["directory"])
        self.chain, self.key = self.folder / "fullchain.pem", self.folder / "privkey.pem"
        self.live = LETSENCRYPT / "live" / module.params["lineage"]
        self.renewal = LETSENCRYPT / "renewal" / f"{module.params['lineage']}.conf"
        self.did: list[str] = []
        self.message = self.advice = ""

    # -- looking

    def openssl(self, *words: str | Path) -> str | None:
        """What openssl prints, or None where it fails."""
        code, output, _ = self.module.run_command(["openssl", *map(str, words)])
        return output.strip() if code == 0 else None

    def lasts(self, chain: Path, seconds: int) -> bool:
        """Whether a certificate is there and valid for so long yet."""
        return chain.exists() and self.openssl("x509", "-in", chain, "-noout", "-checkend", str(seconds)) is not None

    def names(self, chain: Path) -> set[str]:
        text = self.openssl("x509", "-in", chain, "-noout", "-ext", "subjectAltName") or ""
        return {canonical(name) for name in re.findall(r"(?:DNS|IP Address):([^,\s]+)", text)}

    def is_pair(self) -> bool:
        public = self.openssl("x509", "-in", self.chain, "-noout", "-pubkey")
        return public is not None and self.key.exists() and public == self.openssl("pkey", "-in", self.key, "-pubout")

    def is_self_signed(self) -> bool:
        hashes = (self.openssl("x509", "-in", self.chain, "-noout", "-subject_hash", "-issuer_hash") or "").split()
        return len(hashes) == 2 and hashes[0] == hashes[1]

    def expires(self, chain: Path) -> str:
        return (self.openssl("x509", "-in", chain, "-noout", "-enddate") or "").partition("=")[2]

    # -- writing

    def write(self, path: Path, text: str, mode: int) -> None:
        """Put a file in the place of what is there, in one step; a new one has its mode from the start."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
            stream.write(text)
        new.chmod(mode)
        new.replace(path)

    def install(self, chain: str, key: str) -> None:
        self.write(self.key, key, 0o600)
        self.write(self.chain, chain, 0o644)

    # -- self-signed

    def sign(self) -> None:
        reason = self.self_signed_complaint()
        if not reason:
            return
        self.did.append(f"a self-signed certificate for {', '.join(self.wanted)}: {reason}")
        if self.dry:
            return
        names = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in self.wanted)
        command = f"""
            req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days {SELF_SIGNED_DAYS}
            -subj /CN={self.wanted[0]} -addext subjectAltName={names} -addext basicConstraints=critical,CA:FALSE
            -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=serverAuth -keyout - -out -"""
        made = self.openssl(*command.split()) or ""
        texts = {kind: text for text, kind in re.findall(r"(-----BEGIN ([A-Z ]+)-----.+?-----END \2-----)", made, re.S)}
        if set(texts) != {"CERTIFICATE", "PRIVATE KEY"}:
            self.module.fail_json(msg=f"openssl made no certificate for {names}.")
        self.install(texts["CERTIFICATE"] + "\n", texts["PRIVATE KEY"] + "\n")

    def self_signed_complaint(self) -> str:
        if not self.chain.exists() or not self.key.exists():
            return "there is none"
        if not self.is_pair():
            return "key and certificate are no pair"
        if not self.is_self_signed():
            return "it came from elsewhere"
        if not self.lasts(self.chain, RENEW_SECONDS):
            return "it expires within 30 days"
        return "" if self.names(self.chain) == set(self.wanted) else "its names were others"

    # -- the operator's own

    def copy(self) -> None:
        given = self.module.params["certificate"].strip() + "\n", self.module.params["key"].strip() + "\n"
        paths = self.chain, self.key
        if any(
            path.is_symlink() or not path.exists() or path.read_text() != text
            for path, text in zip(paths, given, strict=True)
        ):
            self.did.append("the given certificate")
            if self.dry:
                return
            self.install(*given)
        if not self.lasts(self.chain, RENEW_SECONDS):
            self.message = (
                f"The certificate in app_certificate_files expires on {self.expires(self.chain)}. "
                "Nothing renews it: put a new one in its place and run this again."
            )

    # -- ACME

    def stand_in(self) -> None:
        """See to it that the server can start: what a CA has signed stays while it is good for the first name."""
        signed = self.lasts(self.chain, 0) and self.is_pair() and not self.is_self_signed()
        if not signed or not covers(self.names(self.chain), self.wanted[0]):
            self.sign()

    def issued(self) -> set[str]:
        """The names of the certificate that certbot keeps, if it is valid and from the right server."""
        server = f"server = {self.module.params['server']}\n"
        if (
            not self.renewal.exists()
            or server not in self.renewal.read_text()
            or not self.lasts(self.live / "cert.pem", 0)
        ):
            return set()
        return self.names(self.live / "cert.pem")

    def ask(self) -> None:
        have, wanted = self.issued(), set(self.wanted)
        problems: dict[str, str] = {}
        if have != wanted:
            if self.dry:
                server, names = self.module.params["server"], ", ".join(self.wanted)
                self.message = f"Without --check, {server} is asked for a certificate for {names}."
            else:
                problems = self.request(have)
                have = self.issued()
        if self.wanted[0] in have:
            self.use()
        if problems:
            self.message = "\n".join(filter(None, [*problems.values(), self.served(have), self.message]))
            # What is not a name's is the authority's, or certbot's: the DNS may be right.
            self.advice = "dns" if set(problems) & wanted else "again"

    def request(self, have: set[str]) -> dict[str, str]:
        """Ask for what can be had, unless it is there. Returns what is wrong, by name."""
        params = self.module.params
        (Path(params["webroot"]) / CHALLENGES).mkdir(mode=0o755, parents=True, exist_ok=True)
        problems = self.elsewhere() if params["self_check"] else {}
        ready = [name for name in self.wanted if name not in problems]
        # A name that just cannot be seen stays in the certificate; a new one and one that is gone are worth a new one.
        worth = set(ready) - have or have - set(self.wanted)
        if self.wanted[0] not in ready or not worth:
            return problems
        if not shutil.which("certbot"):
            return problems | {"": "certbot is not installed on this host: playbooks/provision.yml installs it."}
        command = [
            "certbot",
            "certonly",
            "--non-interactive",
            "--agree-tos",
            "--no-eff-email",
            "--email",
            params["email"],
        ]
        command += ["--server", params["server"], "--cert-name", params["lineage"], "--key-type", "ecdsa"]
        command += ["--webroot", "--webroot-path", params["webroot"], "--deploy-hook", params["reload"]]
        command += ["--force-renewal", "--renew-with-new-domains", "--domains", ",".join(ready)]
        code, output, errors = self.module.run_command(command)
        if code == 0:
            self.did.append(f"a certificate for {', '.join(ready)} from {params['server']}")
            return problems
        noise = (
            "Saving debug log",
            "Requesting a certificate",
            "Ask for help",
            "Some challenges have failed",
            "Renewing",
        )
        lines = [line for line in (output + errors).splitlines() if line.strip() and not line.startswith(noise)]
        said = "\n".join([f"{params['server']} gave no certificate. certbot says:", *(f"  {line}" for line in lines)])
        return problems | {"": said}

    def elsewhere(self) -> dict[str, str]:
        """The names at which this host does not see itself, each with a sentence.

        A random text is put where the CA would look, which is right behind a router too.
        """
        token = "seedbed-" + secrets.token_hex(16)
        file = Path(self.module.params["webroot"]) / CHALLENGES / token
        self.write(file, token, 0o644)
        try:
            # Five seconds, since the server may just be reading its new configuration.
            deadline = time.monotonic() + 5
            while True:
                problems = {name: sentence for name in self.wanted if (sentence := self.absence(name, token))}
                if not problems or time.monotonic() > deadline:
                    return problems
                time.sleep(0.5)
        finally:
            file.unlink()

    def absence(self, name: str, token: str) -> str:
        try:
            found = sorted({info[4][0] for info in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
        except OSError:
            return f"{name} has no address in the DNS yet."
        seen, unseen = {}, {}
        for address in found:
            try:
                seen[address] = fetch(address, name, f"/{CHALLENGES}/{token}")
            except OSError as error:
                # A host without IPv6 cannot look at such an address; the CA will.
                blind = ":" in address and error.errno in NO_IPV6
                (unseen if blind else seen)[address] = error.strerror or str(error)
        if seen and all(text == token for text in seen.values()):
            return ""
        wrong = [f"{address} ({text[:60]!r})" for address, text in (seen or unseen).items() if text != token]
        return f"{name} does not lead to this server: at http://{name}/ another answers, or none: {', '.join(wrong)}."

    def served(self, have: set[str]) -> str:
        if self.wanted[0] in have:
            return f"The site keeps its certificate for {', '.join(sorted(have))}."
        return "Until then the site has a self-signed certificate, of which browsers warn."

    def use(self) -> None:
        """Have the server show what certbot keeps, and certbot renew it."""
        for path in (self.key, self.chain):
            target = str(self.live / path.name)
            if not path.is_symlink() or str(path.readlink()) != target:
                self.did.append(f"{path} leads to {target}")
                if not self.dry:
                    new = path.with_name(path.name + ".new")
                    new.unlink(missing_ok=True)
                    new.symlink_to(target)
                    new.replace(path)
        timer = ["certbot.timer"]
        if (
            self.module.run_command(["systemctl", "is-enabled", *timer])[0]
            or self.module.run_command(["systemctl", "is-active", *timer])[0]
        ):
            self.did.append("certbot.timer, which renews it")
            if not self.dry:
                self.module.run_command(["systemctl", "enable", "--now", *timer], check_rc=True)
        if not self.lasts(self.live / "cert.pem", WARN_SECONDS):
            self.message = (
                f"The certificate expires on {self.expires(self.live / 'cert.pem')} and was not renewed. "
                "To see why, type on the server: certbot renew --dry-run; journalctl -u certbot"
            )

    def leave_acme(self) -> None:
        """Nobody renews what nobody shows."""
        if not self.renewal.exists():
            return
        self.did.append("certbot renews it no longer")
        if self.dry:
            return
        self.module.run_command(
            ["certbot", "delete", "--non-interactive", "--cert-name", self.module.params["lineage"]], check_rc=True
        )
        if not list(self.renewal.parent.glob("*.conf")):
            self.module.run_command(["systemctl", "disable", "--now", "certbot.timer"], check_rc=True)

    # -- stapling

    def staple(self) -> None:
        """Tell nginx of stapling only where the certificate names a responder; elsewhere it would warn."""
        path = self.folder / "stapling.conf"
        text = ""
        if self.openssl("x509", "-in", self.chain, "-noout", "-ocsp_uri"):
            addresses = resolvers(Path("/etc/resolv.conf").read_text())
            if addresses:
                text = f"ssl_stapling on;\nresolver {' '.join(addresses)} ipv6=off;\n"
        if (path.read_text() if path.exists() else "") == text:
            return
        self.did.append("OCSP stapling is " + ("on" if text else "off"))
        if not self.dry:
            self.write(path, text, 0o644)

    def keep(self) -> None:
        """Do what the provider is there for."""
        params = self.module.params
        if params["provider"] == "acme":
            self.ask() if params["issue"] else self.stand_in()
        else:
            self.copy() if params["provider"] == "files" else self.sign()
            self.leave_acme()
        self.staple()
        if params["issue"] and self.did and not self.dry:
            code, _, errors = self.module.run_command(params["reload"], use_unsafe_shell=True)
            if code:
                self.module.fail_json(msg=f"The server did not take the new certificate: {errors}")


def main() -> None:
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "provider": {"type": "str", "required": True, "choices": ["self_signed", "acme", "files"]},
            "issue": {"type": "bool", "default": False},
            "directory": {"type": "path", "required": True},
            "domains": {"type": "list", "elements": "str", "required": True},
            "certificate": text,
            "key": text | {"no_log": True},
            "lineage": text | {"default": "site"},
            "email": text,
            "server": text,
            "webroot": text | {"type": "path"},
            "reload": text | {"default": "true"},
            "self_check": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    certificate = Certificate(module)
    certificate.keep()
    said = {"message": certificate.message, "advice": certificate.advice}
    module.exit_json(changed=bool(certificate.did), did=certificate.did, **said)


if __name__ == "__main__":
    main()
