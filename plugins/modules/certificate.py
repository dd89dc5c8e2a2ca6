#!/usr/bin/python
"""Provide the TLS certificate of a site, from one of three providers."""

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
short_description: Provide the TLS certificate of a site
description:
  - Provides C(fullchain.pem) and C(privkey.pem) in a folder. They always match, so that the web server can start, and
    are only replaced if needed.
  - With O(provider=acme) they are links to the files that certbot keeps and renews. The CA contacts the web server, so
    O(issue=false) only provides a self-signed certificate until there is another, and O(issue=true) requests the CA's.
  - Removes certbot's certificate and, if it has no other, stops its timer when O(provider) changes.
  - For each name in O(keep), C(kept/NAME.conf) names a certificate for it, in nginx's notation; where the site's
    certificate is not for that name any more, the last one that was.
  - Writes C(stapling.conf), which enables OCSP stapling in nginx if the certificate names a responder.
  - Supports check mode.
options:
  provider: {type: str, required: true, choices: [self_signed, acme, files], description: Source of the certificate.}
  issue: {type: bool, default: false, description: "With V(acme): request the certificate if it does not exist yet."}
  directory: {type: path, required: true, description: The folder.}
  domains: {type: list, elements: str, required: true, description: Names and addresses of the site.}
  keep: {type: list, elements: str, default: [], description: Other names that the web server still accepts.}
  certificate: {type: str, default: "", description: "With V(files): the certificate and its chain, as PEM."}
  key: {type: str, default: "", description: "With V(files): its key, as PEM."}
  lineage: {type: str, default: site, description: certbot's name of the certificate.}
  email: {type: str, default: "", description: Address of the ACME account.}
  acme_directory_url: {type: str, default: "", description: Directory URL of the ACME server.}
  webroot: {type: path, default: "", description: Document root of the challenges, for HTTP on port 80.}
  reload: {type: str, default: "true", description: Shell command that makes the web server read the certificate.}
  self_check: {type: bool, default: true, description: Request only names under which this host reaches itself.}
author: Seedbed
"""

EXAMPLES = r"""
- name: Request a certificate from the CA
  certificate:
    provider: acme
    issue: true
    directory: /etc/ssl/shop
    domains: [shop.example.org, www.shop.example.org]
    email: admin@example.org
    acme_directory_url: https://acme-v02.api.letsencrypt.org/directory
    webroot: /var/www/shop/acme
    reload: systemctl reload nginx
"""

RETURN = r"""
changes: {description: What changed., type: list, elements: str}
message: {description: A problem to report to the user., type: str}
hint:
  description: >-
    What to add to the message. V(dns), how to point names to this host and run this again; V(retry), only how to run
    this again after fixing the problem; empty, nothing.
  type: str
"""

DAY = 24 * 3600
SELF_SIGNED_DAYS = 397
# A self-signed certificate is replaced this early; the others are renewed earlier, by certbot or by the user.
RENEW_SECONDS, WARN_SECONDS = 30 * DAY, 14 * DAY
LETSENCRYPT = Path("/etc/letsencrypt")
CHALLENGES = ".well-known/acme-challenge"
# What connecting to an IPv6 address fails with on a host without IPv6.
NO_IPV6 = {errno.ENETUNREACH, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}
# Seconds until the web server has read a new configuration.
SELF_CHECK_SECONDS = 5
# The beginnings of certbot's lines that say nothing about an error.
CERTBOT_NOISE = (
    "Saving debug log",
    "Requesting a certificate",
    "Ask for help",
    "Some challenges have failed",
    "Renewing",
)


def canonical(name: str) -> str:
    """Return the canonical form of a name or address."""
    try:
        return str(ipaddress.ip_address(name))
    except ValueError:
        return name.lower()


def is_address(name: str) -> bool:
    return re.fullmatch(r"[0-9.]+|.*:.*", name) is not None


def covers(names: Iterable[str], wanted: str) -> bool:
    """Return whether a certificate for `names` is valid for another name; `*` stands for one label."""
    return bool({wanted, "*." + wanted.partition(".")[2]} & set(names))


def resolvers(text: str) -> list[str]:
    """Return the IPv4 addresses of the name servers in a resolv.conf."""
    return re.findall(r"^nameserver\s+([\d.]+)(?=\s|$)", text, re.M)


def fetch(address: str, name: str, path: str) -> str:
    """Return the body of http://NAME/PATH at one of its addresses, or what is wrong with the response.

    Raises OSError if the connection fails.
    """
    connection = http.client.HTTPConnection(address, 80, timeout=5)
    try:
        connection.request("GET", path, headers={"Host": name})
        response = connection.getresponse()
        return response.read(200).decode(errors="replace") if response.status == 200 else f"status {response.status}"
    except http.client.HTTPException as error:
        return type(error).__name__
    finally:
        connection.close()


class Certificate:
    """The certificate in the folder.

    `changes` lists what changed, or in check mode would change; for `message` and `hint` see RETURN.
    """

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.check_mode = module.check_mode
        self.wanted = [canonical(name) for name in module.params["domains"]]
        self.folder = Path(module.params["directory"])
        self.chain, self.key = self.folder / "fullchain.pem", self.folder / "privkey.pem"
        self.live = LETSENCRYPT / "live" / module.params["lineage"]
        self.renewal = LETSENCRYPT / "renewal" / f"{module.params['lineage']}.conf"
        self.changes: list[str] = []
        self.message = self.hint = ""

    # -- Read the current certificate

    def openssl(self, *words: str | Path) -> str | None:
        """Return the output of openssl, or None if it fails."""
        code, output, _ = self.module.run_command(["openssl", *map(str, words)])
        return output.strip() if code == 0 else None

    def is_valid_for(self, chain: Path, seconds: int) -> bool:
        """Return whether a certificate exists and does not expire within `seconds`."""
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

    def expiry(self, chain: Path) -> str:
        return (self.openssl("x509", "-in", chain, "-noout", "-enddate") or "").partition("=")[2]

    # -- Write files

    def write(self, path: Path, text: str, mode: int) -> None:
        """Replace a file atomically; a new file has its mode from the start."""
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as stream:
            stream.write(text)
        new.chmod(mode)
        new.replace(path)

    def link(self, path: Path, target: str) -> None:
        """Replace a file by a symbolic link, atomically."""
        new = path.with_name(path.name + ".new")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(path)

    def install(self, chain: str, key: str) -> None:
        self.write(self.key, key, 0o600)
        self.write(self.chain, chain, 0o644)

    # -- Provider self_signed

    def provide_self_signed(self) -> None:
        reason = self.self_signed_problem()
        if not reason:
            return
        self.changes.append(f"a self-signed certificate for {', '.join(self.wanted)}: {reason}")
        if self.check_mode:
            return
        names = ",".join(f"{'IP' if is_address(name) else 'DNS'}:{name}" for name in self.wanted)
        command = f"""
            req -x509 -nodes -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days {SELF_SIGNED_DAYS}
            -subj /CN={self.wanted[0]} -addext subjectAltName={names} -addext basicConstraints=critical,CA:FALSE
            -addext keyUsage=critical,digitalSignature -addext extendedKeyUsage=serverAuth -keyout - -out -"""
        output = self.openssl(*command.split()) or ""
        pem = {kind: text for text, kind in re.findall(r"(-----BEGIN ([A-Z ]+)-----.+?-----END \2-----)", output, re.S)}
        if set(pem) != {"CERTIFICATE", "PRIVATE KEY"}:
            self.module.fail_json(msg=f"openssl failed to create a certificate for {names}.")
        self.install(pem["CERTIFICATE"] + "\n", pem["PRIVATE KEY"] + "\n")

    def self_signed_problem(self) -> str:
        """Return why the current certificate must be replaced, or ""."""
        if not self.chain.exists() or not self.key.exists():
            return "there is none yet"
        if not self.is_pair():
            return "the current key and certificate do not match"
        if not self.is_self_signed():
            return "the current one is from another provider"
        if not self.is_valid_for(self.chain, RENEW_SECONDS):
            return "the current one expires within 30 days"
        return "" if self.names(self.chain) == set(self.wanted) else "the names have changed"

    # -- Provider files

    def provide_files(self) -> None:
        params = self.module.params
        texts = {self.chain: params["certificate"].strip() + "\n", self.key: params["key"].strip() + "\n"}
        if any(path.is_symlink() or not path.exists() or path.read_text() != text for path, text in texts.items()):
            self.changes.append("the given certificate")
            if self.check_mode:
                return
            self.install(*texts.values())
        if not self.is_valid_for(self.chain, RENEW_SECONDS):
            self.message = (
                f"The certificate in app_certificate_files expires on {self.expiry(self.chain)}. "
                "It is not renewed automatically: replace the files and run this again."
            )

    # -- Provider acme

    def provide_placeholder(self) -> None:
        """Provide a self-signed certificate, unless a CA's certificate is valid for the first name."""
        signed = self.is_valid_for(self.chain, 0) and self.is_pair() and not self.is_self_signed()
        if not signed or not covers(self.names(self.chain), self.wanted[0]):
            self.provide_self_signed()

    def issued_names(self) -> set[str]:
        """Return the names of certbot's certificate, if it is valid and from the right ACME server."""
        server = f"server = {self.module.params['acme_directory_url']}\n"
        if (
            not self.renewal.exists()
            or server not in self.renewal.read_text()
            or not self.is_valid_for(self.live / "cert.pem", 0)
        ):
            return set()
        return self.names(self.live / "cert.pem")

    def provide_issued(self) -> None:
        """Request the CA's certificate if it does not exist, and install it."""
        issued, wanted = self.issued_names(), set(self.wanted)
        problems: dict[str, str] = {}
        if issued != wanted:
            if self.check_mode:
                url, names = self.module.params["acme_directory_url"], ", ".join(self.wanted)
                self.message = f"Without --check, this run requests a certificate for {names} from {url}."
            else:
                problems = self.request(issued)
                issued = self.issued_names()
        if self.wanted[0] in issued:
            self.use_issued()
        if problems:
            self.message = "\n".join(filter(None, [*problems.values(), self.current_state(issued), self.message]))
            # A problem of the CA or certbot has no name; the DNS may be right.
            self.hint = "dns" if set(problems) & wanted else "retry"

    def request(self, issued: set[str]) -> dict[str, str]:
        """Request a certificate for the names that point to this host, if it would change anything.

        Returns the problems by name; "" is the name of a problem with certbot or the CA.
        """
        webroot = Path(self.module.params["webroot"])
        (webroot / CHALLENGES).mkdir(mode=0o755, parents=True, exist_ok=True)
        problems = self.unreachable_names() if self.module.params["self_check"] else {}
        ready = [name for name in self.wanted if name not in problems]
        # A name that is unreachable just now stays in the certificate; a new or a removed name needs a new certificate.
        needed = set(ready) - issued or issued - set(self.wanted)
        if self.wanted[0] not in ready or not needed:
            return problems
        if not shutil.which("certbot"):
            return problems | {"": "certbot is not installed on this host: playbooks/provision.yml installs it."}
        return problems | self.run_certbot(ready)

    def run_certbot(self, names: list[str]) -> dict[str, str]:
        params = self.module.params
        command = ["certbot", "certonly", "--non-interactive", "--agree-tos", "--no-eff-email"]
        command += ["--email", params["email"], "--server", params["acme_directory_url"]]
        command += ["--cert-name", params["lineage"], "--key-type", "ecdsa", "--domains", ",".join(names)]
        command += ["--webroot", "--webroot-path", params["webroot"], "--deploy-hook", params["reload"]]
        command += ["--force-renewal", "--renew-with-new-domains"]
        code, output, errors = self.module.run_command(command)
        if code == 0:
            self.changes.append(f"a certificate for {', '.join(names)} from {params['acme_directory_url']}")
            return {}
        lines = [line for line in (output + errors).splitlines() if line.strip() and not line.startswith(CERTBOT_NOISE)]
        summary = f"{params['acme_directory_url']} issued no certificate. Output of certbot:"
        return {"": "\n".join([summary, *(f"  {line}" for line in lines)])}

    def unreachable_names(self) -> dict[str, str]:
        """Return the names under which this host does not reach itself, with the problem of each.

        The test is a random file at the place that the CA would request, so it also works behind a router.
        """
        token = "seedbed-" + secrets.token_hex(16)
        file = Path(self.module.params["webroot"]) / CHALLENGES / token
        self.write(file, token, 0o644)
        try:
            deadline = time.monotonic() + SELF_CHECK_SECONDS
            while True:
                problems = {name: problem for name in self.wanted if (problem := self.reach_problem(name, token))}
                if not problems or time.monotonic() > deadline:
                    return problems
                time.sleep(0.5)
        finally:
            file.unlink()

    def reach_problem(self, name: str, token: str) -> str:
        """Return why a name does not reach this host, or ""."""
        try:
            addresses = sorted({info[4][0] for info in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
        except OSError:
            return f"{name} has no address in the DNS yet."
        reached, untested = {}, {}
        for address in addresses:
            try:
                reached[address] = fetch(address, name, f"/{CHALLENGES}/{token}")
            except OSError as error:
                # A host without IPv6 cannot test such an address; the CA will.
                no_route = ":" in address and error.errno in NO_IPV6
                (untested if no_route else reached)[address] = error.strerror or str(error)
        if reached and all(text == token for text in reached.values()):
            return ""
        wrong = [f"{address} ({text[:60]!r})" for address, text in (reached or untested).items() if text != token]
        return (
            f"{name} does not point to this server: http://{name}/ gets no response, or another server's, "
            f"at {', '.join(wrong)}."
        )

    def current_state(self, issued: set[str]) -> str:
        """Return a sentence on the certificate that the site has meanwhile."""
        if self.wanted[0] in issued:
            return f"The site keeps its certificate for {', '.join(sorted(issued))}."
        return "Until then, the site has a self-signed certificate, and browsers show a warning."

    def use_issued(self) -> None:
        """Link certbot's files and enable the timer that renews them."""
        for path in (self.key, self.chain):
            target = str(self.live / path.name)
            if not path.is_symlink() or str(path.readlink()) != target:
                self.changes.append(f"{path} links to {target}")
                if not self.check_mode:
                    self.link(path, target)
        if not self.timer_is("is-enabled") or not self.timer_is("is-active"):
            self.changes.append("certbot.timer enabled")
            if not self.check_mode:
                self.module.run_command(["systemctl", "enable", "--now", "certbot.timer"], check_rc=True)
        if not self.is_valid_for(self.live / "cert.pem", WARN_SECONDS):
            self.message = (
                f"The certificate expires on {self.expiry(self.live / 'cert.pem')} and was not renewed. "
                "To find the cause, run on the server: certbot renew --dry-run; journalctl -u certbot"
            )

    def timer_is(self, query: str) -> bool:
        return self.module.run_command(["systemctl", query, "certbot.timer"])[0] == 0

    def remove_issued(self) -> None:
        """Delete certbot's certificate, which is not used any more."""
        if not self.renewal.exists():
            return
        self.changes.append("certbot's certificate deleted")
        if self.check_mode:
            return
        self.module.run_command(
            ["certbot", "delete", "--non-interactive", "--cert-name", self.module.params["lineage"]], check_rc=True
        )
        if not list(self.renewal.parent.glob("*.conf")):
            self.module.run_command(["systemctl", "disable", "--now", "certbot.timer"], check_rc=True)

    # -- OCSP stapling

    def configure_stapling(self) -> None:
        """Enable stapling only if the certificate names a responder; otherwise nginx logs a warning."""
        path = self.folder / "stapling.conf"
        text = ""
        if self.openssl("x509", "-in", self.chain, "-noout", "-ocsp_uri"):
            addresses = resolvers(Path("/etc/resolv.conf").read_text())
            if addresses:
                text = f"ssl_stapling on;\nresolver {' '.join(addresses)} ipv6=off;\n"
        if (path.read_text() if path.exists() else "") == text:
            return
        self.changes.append("OCSP stapling " + ("enabled" if text else "disabled"))
        if not self.check_mode:
            self.write(path, text, 0o644)

    # -- Names that the site had before

    def keep_certificates(self, before: tuple[str, str] | None, names_before: set[str]) -> None:
        """Provide a certificate for each name in `keep`; `before` holds chain and key as this run found them.

        Files of other names stay: the web server's configuration may still include them.
        """
        folder, names = self.folder / "kept", self.names(self.chain)
        wanted: dict[Path, tuple[str, int]] = {}
        for name in self.module.params["keep"]:
            chain, key = folder / f"{name}.pem", folder / f"{name}.key"
            if covers(names, canonical(name)):
                pair = (self.chain, self.key)
            else:
                pair = (chain, key)
                if before and covers(names_before, canonical(name)):
                    texts = before
                elif chain.exists() and key.exists():
                    texts = chain.read_text(), key.read_text()
                else:
                    # One for another name: the web server must start.
                    texts = self.pair() or ("", "")
                wanted |= {key: (texts[1], 0o600), chain: (texts[0], 0o644)}
            lines = f"ssl_certificate {pair[0]};\nssl_certificate_key {pair[1]};\n"
            wanted[folder / f"{name}.conf"] = (lines, 0o644)
        for path, (text, mode) in wanted.items():
            if not path.exists() or path.read_text() != text:
                self.changes.append(str(path))
                if not self.check_mode:
                    self.write(path, text, mode)

    def pair(self) -> tuple[str, str] | None:
        """Return the texts of certificate and key, or None if there is no valid pair."""
        return (self.chain.read_text(), self.key.read_text()) if self.chain.exists() and self.is_pair() else None

    def provide(self) -> None:
        """Bring the folder to the requested state. Fails the module if the web server rejects the certificate."""
        params = self.module.params
        before, names_before = (self.pair(), self.names(self.chain)) if params["keep"] else (None, set())
        if params["provider"] == "acme":
            self.provide_issued() if params["issue"] else self.provide_placeholder()
        else:
            self.provide_files() if params["provider"] == "files" else self.provide_self_signed()
            self.remove_issued()
        self.configure_stapling()
        self.keep_certificates(before, names_before)
        if params["issue"] and self.changes and not self.check_mode:
            code, _, errors = self.module.run_command(params["reload"], use_unsafe_shell=True)
            if code:
                self.module.fail_json(msg=f"The web server rejected the new certificate: {errors}")


def main() -> None:
    # nginx must be able to read the answers to the CA, also where logins have a stricter umask.
    os.umask(0o022)
    text = {"type": "str", "default": ""}
    module = AnsibleModule(
        argument_spec={
            "provider": {"type": "str", "required": True, "choices": ["self_signed", "acme", "files"]},
            "issue": {"type": "bool", "default": False},
            "directory": {"type": "path", "required": True},
            "domains": {"type": "list", "elements": "str", "required": True},
            "keep": {"type": "list", "elements": "str", "default": []},
            "certificate": text,
            "key": text | {"no_log": True},
            "lineage": text | {"default": "site"},
            "email": text,
            "acme_directory_url": text,
            "webroot": text | {"type": "path"},
            "reload": text | {"default": "true"},
            "self_check": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    certificate = Certificate(module)
    certificate.provide()
    module.exit_json(
        changed=bool(certificate.changes),
        changes=certificate.changes,
        message=certificate.message,
        hint=certificate.hint,
    )


if __name__ == "__main__":
    main()
