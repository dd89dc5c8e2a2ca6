r"""Read a dump as SQL of pg_dump, and leave out what another server's roles, settings and psql are needed for.

The tables of a dump that is restored by its new owner belong to that owner. So every statement about owners, privileges
and roles is left out, and a few more, each of which LEFT_OUT names. COPY data and function bodies pass unchanged.

A dump is code, and psql runs `\!`: commands of psql outside of COPY data are refused (`\connect`, `\restrict` and
`\unrestrict`, which pg_dump writes, are left out).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from .settings import ReleaseError

IDENTIFIER = rb"""(?:"(?:[^"]|"")+"|[^\s"'(),.;]+)"""
# What ends plain SQL, or begins something in which a semicolon and a backslash mean nothing.
TOKEN = re.compile(rb"'|\"|;|\\|--|/\*|\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$")
COMMENT = re.compile(rb"/\*|\*/")
WORD_CHARACTER = re.compile(rb"[\w$\x80-\xff]")
LEADING = re.compile(rb"(?:\s+|--[^\n]*(?:\n|$)|/\*.*?\*/)+", re.S)
NAME = rb"(?:%b\.)?%b" % (IDENTIFIER, IDENTIFIER)
COPY = re.compile(rb"COPY %b(?: ?\(%b(?:, ?%b)*\))? FROM stdin\b" % (NAME, IDENTIFIER, IDENTIFIER), re.I)
EXTENSION = re.compile(rb"CREATE EXTENSION (?:IF NOT EXISTS )?(%b)(?:.* SCHEMA (%b))?" % ((IDENTIFIER,) * 2), re.I)
SETTING = re.compile(rb"SET (?:SESSION |LOCAL )?([A-Za-z_][\w.]*) ?(?:=|TO\b)(.*)", re.I)
SCHEMA = re.compile(rb"CREATE SCHEMA (?:IF NOT EXISTS )?(%b)" % IDENTIFIER, re.I)

# What it is called, and the beginning of a statement, with single spaces.
LEFT_OUT = {
    "OWNER TO": rb"ALTER\b.* OWNER TO %b ?;$" % IDENTIFIER,
    "GRANT, REVOKE": rb"(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES)\b",
    "SET ROLE": rb"(?:SET|RESET)(?: LOCAL| SESSION)? (?:ROLE|SESSION AUTHORIZATION)\b",
    "ALTER ROLE": rb"ALTER (?:ROLE|USER(?! MAPPING))\b",
    "the database itself": rb"(?:CREATE|ALTER|DROP|COMMENT ON|SECURITY LABEL ON) DATABASE\b",
    # The database that it is restored into is empty.
    "DROP": rb"DROP\b|ALTER (?:TABLE|VIEW|DOMAIN) (?:IF EXISTS )?(?:ONLY )?%b "
    rb"(?:DROP CONSTRAINT|ALTER COLUMN %b DROP (?:DEFAULT|IDENTITY))\b" % (NAME, IDENTIFIER),
    # Created before, as some of them need the superuser.
    "EXTENSION": rb"(?:CREATE|ALTER|COMMENT ON) EXTENSION\b",
    # Only a superuser may create these, or they belong to the other server.
    "EVENT TRIGGER": rb"(?:CREATE|ALTER|COMMENT ON) EVENT TRIGGER\b",
    "PUBLICATION, SUBSCRIPTION": rb"(?:CREATE|ALTER|COMMENT ON) (?:PUBLICATION|SUBSCRIPTION)\b",
    "SECURITY LABEL": rb"SECURITY LABEL\b",
    "TABLESPACE": rb"(?:CREATE|ALTER|COMMENT ON) TABLESPACE\b|ALTER\b.* SET TABLESPACE %b ?;$" % IDENTIFIER,
}
PATTERNS = {name: re.compile(pattern, re.I | re.S) for name, pattern in LEFT_OUT.items()}
ONLY_IN_PG_DUMPALL = re.compile(rb"CREATE (?:ROLE|USER(?! MAPPING))\b", re.I)
# Of a statement, at most so many bytes decide what it is.
HEAD, TAIL = 4096, 400
# A comment at the end of every plain dump.
COMPLETE = b"PostgreSQL database dump complete"


@dataclass
class DumpFilter:
    """Filter the lines of one dump, and count what it has.

    `known` are the settings of the server (a dump of a newer one sets others); without them, all are kept. `schemas`
    exist already.
    """

    known: Collection[str] = ()
    schemas: Collection[str] = ("public",)
    left_out: Counter[str] = field(default_factory=Counter)
    # Name and schema of each extension, in their order.
    extensions: dict[str, str] = field(default_factory=dict)
    tables: int = 0
    size: int = 0
    is_complete: bool = False

    def __post_init__(self) -> None:
        self.number = 0
        self.connected = ""
        # Inside of a literal, an identifier, a comment or a body: what ends it. `depth` is that of nested comments.
        self.inside = b""
        self.escapes = False
        self.depth = 0
        # Old dumps may switch the standard off: then a backslash escapes in every literal.
        self.standard = True

    def filter(self, lines: Iterable[bytes]) -> Iterator[bytes]:
        """Yield what is kept. Statements that are left out become empty lines, so that the numbers of lines stay."""
        statement: list[bytes] = []
        source = iter(lines)
        for line in source:
            self.count(line)
            if not statement and not self.inside and is_blank(line):
                self.is_complete |= COMPLETE in line
                yield line
                continue
            if not statement and not self.inside and line.startswith(b"\\"):
                self.command(line.split())
                yield b"\n"
                continue
            begin = 0
            for end in self.ends(line):
                statement.append(line[begin:end])
                begin = end
                text = b"".join(statement)
                statement.clear()
                if self.is_copy(text):
                    if line[end:].strip():
                        raise self.error("something follows COPY … FROM stdin in its line")
                    yield text + line[end:]
                    begin = len(line)
                    yield from self.data(source)
                    break
                yield self.kept(text)
            rest = line[begin:]
            if self.inside or statement or rest.strip():
                statement.append(rest)
            else:
                yield rest
        if statement or self.inside:
            raise ReleaseError(f"The dump ends within a statement (line {self.number}): it is not complete.")

    def count(self, line: bytes) -> None:
        self.number += 1
        self.size += len(line)

    def data(self, source: Iterator[bytes]) -> Iterator[bytes]:
        r"""Yield the rows of COPY, up to `\.`."""
        for line in source:
            self.count(line)
            yield line
            if line.startswith(b"\\.") and line.rstrip(b"\r\n") == b"\\.":
                return
        raise ReleaseError(f"The dump ends within the rows of a table (line {self.number}): it is not complete.")

    # -- statements

    def ends(self, line: bytes) -> Iterator[int]:
        """Yield the place after each semicolon that ends a statement."""
        place = 0
        while place < len(line):
            if self.inside:
                place = self.leave(line, place)
                continue
            found = TOKEN.search(line, place)
            if not found:
                return
            token, place = found[0], found.end()
            if token == b";":
                yield place
            elif token == b"--":
                return
            elif token == b"\\":
                raise self.error("a command of psql after something else")
            else:
                self.enter(token, line, found.start())

    def enter(self, token: bytes, line: bytes, start: int) -> None:
        before = line[start - 1 : start]
        if token.startswith(b"$") and WORD_CHARACTER.match(before):
            # A part of an identifier.
            return
        self.inside = token
        if token == b"/*":
            self.depth = 1
        if token == b"'":
            is_escape = before in (b"e", b"E") and not WORD_CHARACTER.match(line[start - 2 : start - 1])
            self.escapes = is_escape or not self.standard

    def leave(self, line: bytes, place: int) -> int:
        """Return the place after the end of what `inside` has begun, or the end of the line."""
        if self.inside == b"/*":
            return self.leave_comment(line, place)
        if self.inside in (b"'", b'"'):
            end = self.closing_quote(line, place)
        else:
            found = line.find(self.inside, place)
            end = found + len(self.inside) if found >= 0 else -1
        if end < 0:
            return len(line)
        self.inside = b""
        return end

    def leave_comment(self, line: bytes, place: int) -> int:
        for found in COMMENT.finditer(line, place):
            self.depth += 1 if found[0] == b"/*" else -1
            if self.depth == 0:
                self.inside = b""
                return found.end()
        return len(line)

    def closing_quote(self, line: bytes, place: int) -> int:
        """Return the place after the quote that ends a literal or an identifier; -1 when it is in another line."""
        escapes = self.inside == b"'" and self.escapes
        while True:
            quote = line.find(self.inside, place)
            escape = line.find(b"\\", place, quote) if escapes and quote >= 0 else -1
            if escape >= 0:
                place = escape + 2
            elif quote < 0 or line[quote + 1 : quote + 2] != self.inside:
                return quote + 1 if quote >= 0 else -1
            else:
                # Doubled: a part of the text.
                place = quote + 2

    def command(self, words: list[bytes]) -> None:
        r"""Check a command of psql. (A backslash alone, as at the end of data, is none of pg_dump's.)"""
        if words[0] in (b"\\restrict", b"\\unrestrict"):
            return
        if words[0] not in (b"\\connect", b"\\c"):
            raise self.error(f"the command {text_of(words[0])} of psql")
        # `-reuse-previous=on "dbname='shop'"` names it, too.
        name = text_of(words[-1])
        if self.connected not in ("", name):
            raise ReleaseError(ALL_DATABASES)
        self.connected = name

    def is_copy(self, text: bytes) -> bool:
        """Return whether rows follow a statement."""
        if not re.match(rb"COPY\b", in_one_line(text), re.I):
            return False
        statement = in_one_line(text, whole=True)
        if COPY.match(statement):
            return True
        if re.search(rb"\bstdin\b", statement, re.I):
            raise self.error("COPY in a form that is not pg_dump's")
        return False

    def kept(self, text: bytes) -> bytes:
        """Return a statement, or empty lines in its place."""
        head = in_one_line(text)
        if name := self.reason(head):
            self.left_out[name] += 1
            return b"\n" * text.count(b"\n")
        if re.match(rb"CREATE (?:UNLOGGED |FOREIGN )?TABLE\b", head, re.I):
            self.tables += 1
        return text

    def reason(self, head: bytes) -> str:
        """Return what a statement is left out as; "" keeps it."""
        if ONLY_IN_PG_DUMPALL.match(head):
            raise ReleaseError(ALL_DATABASES)
        if found := EXTENSION.match(head):
            self.extensions.setdefault(unquote(found[1]), unquote(found[2] or b"public"))
        if found := SETTING.match(head):
            return self.reason_of_setting(text_of(found[1]).lower(), found[2])
        if (found := SCHEMA.match(head)) and unquote(found[1]) in self.schemas:
            return "CREATE SCHEMA"
        return next((name for name, pattern in PATTERNS.items() if pattern.match(head)), "")

    def reason_of_setting(self, name: str, value: bytes) -> str:
        value = value.strip(b" ;'\"").lower()
        if name == "standard_conforming_strings":
            self.standard = value not in (b"off", b"false", b"0")
        if name in ("role", "session_authorization"):
            return "SET ROLE"
        if name == "default_tablespace" and value:
            return "TABLESPACE"
        if self.known and "." not in name and name not in self.known:
            return f"SET {name}"
        return ""

    def error(self, what: str) -> ReleaseError:
        return ReleaseError(f"Line {self.number} of the dump has {what}, which is not pg_dump's. Remove it there.")


ALL_DATABASES = (
    "This is a dump of a whole server (pg_dumpall), with its roles and databases. Dump the application's database "
    "alone: pg_dump --format=custom --file=FILE DATABASE"
)


def is_blank(line: bytes) -> bool:
    """Return whether a line between statements is empty or a comment."""
    return line.startswith((b"\n", b"\r\n", b"--"))


def in_one_line(text: bytes, *, whole: bool = False) -> bytes:
    """Return a statement without leading comments, with single spaces; unless `whole`, its beginning and its end."""
    found = LEADING.match(text)
    text = text[found.end() :] if found else text
    if len(text) > HEAD + TAIL and not whole:
        text = text[:HEAD] + b" " + text[-TAIL:]
    return b" ".join(text.split())


def unquote(name: bytes) -> str:
    """Return an identifier as the server stores it."""
    if name.startswith(b'"'):
        return text_of(name[1:-1].replace(b'""', b'"'))
    return text_of(name).lower()


def text_of(value: bytes) -> str:
    return value.decode(errors="replace")
