"""Report idioms that have a plain technical term, as FILE:LINE: the words found, then what to write instead.

    python3 tools/language_lint.py [FILE ...]      without FILE: every tracked text file

Exit status 1 when something is found. A line that needs a word, such as the Unix user nobody, says so in a comment:

    User=nobody  # language-lint: allow nobody
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# A pattern, and the term to use. A space also matches line breaks, comment signs and the underscores of identifiers.
IDIOMS: dict[str, str] = {
    "whoever": "name the subject: the operator, the caller, the client",
    "whom": "name the subject: the user, the client, the host",
    "nobody": 'name what is missing: "no process", "no client", "no one"',
    "somebody(?: else's)?": '"another user", "external", "managed"',
    "everybody": '"every client", "every user"',
    "anew|afresh": '"again", or "new"',
    "in vain": '"without effect"',
    r"put(?:s|ting)?(?: \w+){0,3} back": "revert (a release), restore (a file), requeue (a message)",
    "(?:hand|hands|handed|give|gives|gave|given) back": "requeue (a message), release (a lock), return (a value)",
    "ways? in(?! which)": '"access", "SSH access", "a way to connect"',
    "(?:get|gets|got) in(?! (?:the|a|an|order|touch))": '"logs in", "connects"',
    "(?:let|lets) in": '"accepts", "allows"',
    "(?:shut|shuts) out": '"denied access", "locked out"',
    "front doors?": '"TLS and nginx"',
    "doors?": '"exception", "opening", "interface"',
    "looks? on": "follow, attach to",
    "mend(?:s|ed|ing)?": "fix",
    "by itself|by themselves": '"automatically", or "alone"',
    "what serves|what served": '"the current release"',
    "serves? on": '"continues to serve"',
    "goes on(?! (?:the|a|an))": '"continues"',
    "small letters?": "lowercase",
    "(?:capital|big) letters?": "uppercase",
    "stand(?:s|ing)? in": '"is used until", "placeholder"',
    "goes round|went round": "round trip",
    "(?:set|sets|setting) aside": "park, store",
    "(?:is|are|was|were|still) at work": '"running", "in progress"',
    "takes? up what|leads? it on": "resume",
    "the same again": '"the same release", "a repeated call"',
    "sees? to it": "ensure",
    "makes? it so": "apply",
    "what was asked(?: for)?": '"the settings", "the request"',
    "(?:is|are|was|were|be) forgotten": "delete, discard",
    "in turns": '"alternately"',
    "in the words of": '"in the syntax of"',
    "one's own": '"custom", "your own", "its own"',
    "in step(?= with)|in_step|meetings?": "barrier",
    "talkative": "verbose",
    "last words": '"recent logs"',
    "undisturbed": '"with signals deferred"',
    "nothing suffered|nothing suffers": '"zero downtime"',
    "carr(?:y|ies|ied) out": "run, execute",
    "shall": "must, should, or will",
    "rollouts?": "deployment",
    "(?:roll|rolls|rolled|rolling) out": "deploy",
}
FILE_NAMES: dict[str, str] = {
    r"test_(?:\d+|zz)_": "name what is tested; state the order explicitly, once",
}
SKIPPED = re.compile(
    r"""
    (?:.*/)? requirements[^/]*\.txt
    | LICENSE
    | (?:tools/|tests/unit/test_) language_lint\.py
    | app_src/ (?:.*/)? (?:fixtures|static)/ .*
    """,
    re.VERBOSE,
)
ALLOWANCE = re.compile(r"language-lint: allow (.+?)\s*(?:-->|\*/|#\}|$)")
# Between two words: blanks, or a line break with the comment sign or string quotes of the next line, or underscores.
GAP = r"(?:_+|[ \t]+|[ \t\"'\\]*\n[ \t]*(?:\#|//|\*|--|f?[\"'])?[ \t]*)"


class Finding(NamedTuple):
    line: int
    words: str
    instead: str


def compile_idiom(pattern: str) -> re.Pattern[str]:
    """Return the expression that finds an idiom in text, but not in names such as a-b, a/b and a.b."""
    return re.compile(
        rf"(?<![A-Za-z0-9/`-])(?<!\w\.)(?:{pattern.replace(' ', GAP)})(?![A-Za-z0-9/`-])(?!\.\w)", re.IGNORECASE
    )


# For each idiom: a fast expression for lowercase text, which tells whether the exact one can match; the exact one; the
# term to use.
EXPRESSIONS = [
    (re.compile(pattern.replace(" ", GAP)), compile_idiom(pattern), instead) for pattern, instead in IDIOMS.items()
]


def find_idioms(text: str) -> list[Finding]:
    """Return the idioms in `text`, by line. Where two of them overlap, the longer one counts."""
    lines, lowercase = text.split("\n"), text.lower()
    found: dict[tuple[int, int], Finding] = {}
    for words_alone, expression, instead in EXPRESSIONS:
        for match in expression.finditer(text) if words_alone.search(lowercase) else ():
            line = text.count("\n", 0, match.start())
            words = " ".join(match.group().split())
            if not is_allowed(words, lines[line]):
                found[match.span()] = Finding(line + 1, words, instead)
    return sorted(
        finding
        for (start, end), finding in found.items()
        if not any(a <= start and end <= b and (a, b) != (start, end) for a, b in found)
    )


def is_allowed(words: str, line: str) -> bool:
    """Return whether a comment in `line` allows these words."""
    allowance = ALLOWANCE.search(line)
    return bool(allowance) and words.lower() in [word.strip().lower() for word in allowance.group(1).split(",")]


def tracked_files() -> Iterator[Path]:
    """Yield the files that git tracks and that exist."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    yield from (
        Path(name) for name in names.split("\0") if name and Path(name).is_file() and not Path(name).is_symlink()
    )


def read_text(path: Path) -> str:
    """Return the file's text; a binary file has none."""
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode("utf-8", errors="replace")


def lint(paths: Iterator[Path]) -> int:
    """Print each finding in the files at `paths`. Return their number."""
    count = 0
    for path in paths:
        if SKIPPED.fullmatch(path.as_posix()):
            continue
        names = [
            Finding(1, path.name, instead) for pattern, instead in FILE_NAMES.items() if re.match(pattern, path.name)
        ]
        for finding in names + find_idioms(read_text(path)):
            print(f'{path}:{finding.line}: "{finding.words}": {finding.instead}')
            count += 1
    return count


def main() -> int:
    """Lint the files named on the command line, else all tracked files. Return the exit status."""
    count = lint(iter([Path(name) for name in sys.argv[1:]]) if sys.argv[1:] else tracked_files())
    if count:
        print(
            f"\n{count} idioms: write what follows the colon, or add to the line: language-lint: allow WORDS",
            file=sys.stderr,
        )
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
