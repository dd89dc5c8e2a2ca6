"""Debian packages that a build lacks, by the text of its error. docs/your-project.md has the same table by need."""

from __future__ import annotations

import re
import sys

COMPILER = ("build-essential", "python3-dev")

# The text of an error, and the packages that it asks for. Every row that matches counts.
PACKAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    # Compilers and build tools
    (r"Python\.h: No such file", COMPILER),
    (r"(command|execute|file or directory:) '?\S*(gcc|cc|g\+\+|c\+\+)'? ?(failed: No such file|$|:)", COMPILER),
    (r"No such file or directory: '\S*(gcc|cc|g\+\+|c\+\+)'|Unknown compiler\(s\)|linker `cc` not found", COMPILER),
    (r"\b(gcc|g\+\+|cc): (command )?not found|No CMAKE_CXX?_COMPILER could be found", COMPILER),
    (r"\bmake: (command )?not found", ("build-essential",)),
    (r"\bcmake: (command )?not found|CMake must be installed|No such file or directory: 'cmake'", ("cmake",)),
    (r"can't find Rust compiler|Rust package manager, is not installed|\bcargo: (command )?not found", ("cargo",)),
    (
        r"pkg-config: (command )?not found|No such file or directory: 'pkg-config'|Did not find pkg-config",
        ("pkg-config",),
    ),
    # Databases
    (r"pg_config executable not found|pg_config: not found|'pg_config'|libpq-fe\.h", ("libpq-dev", *COMPILER)),
    (r"libpq library not found|no pq wrapper available", ("libpq5",)),
    (
        r"mysql_config|MYSQLCLIENT_CFLAGS|Can not find valid pkg-config name|mysql\.h",
        ("default-libmysqlclient-dev", "pkg-config", *COMPILER),
    ),
    (r"\bsql\.h: No such file", ("unixodbc-dev", *COMPILER)),
    # Formats and libraries
    (r"failed to find libmagic|magic\.h: No such file", ("libmagic1",)),
    (r"xmlsec1? is not installed|xmlsec1'? (was )?not found|xmlsec/", ("libxmlsec1-dev", "pkg-config", *COMPILER)),
    (r"(lber|ldap)\.h: No such file", ("libldap2-dev", "libsasl2-dev", *COMPILER)),
    (r"sasl(/sasl)?\.h: No such file", ("libsasl2-dev", *COMPILER)),
    (
        r"libxml/\w+\.h: No such file|libxml2 and libxslt development packages",
        ("libxml2-dev", "libxslt1-dev", *COMPILER),
    ),
    (r"'cairo' (was )?not found|\"cairo\" not found|cairo\.h: No such", ("libcairo2-dev", "pkg-config", *COMPILER)),
    (r"no library called \"(lib)?cairo", ("libcairo2",)),
    (r"cannot load library '(lib)?(gobject|pango)", ("libpango-1.0-0", "libpangoft2-1.0-0")),
    (r"headers or library files could not be found for (jpeg|zlib)", ("libjpeg-dev", "zlib1g-dev", *COMPILER)),
    (r"\bffi\.h: No such file", ("libffi-dev", *COMPILER)),
    (r"openssl/\w+\.h: No such file|directory of OpenSSL installation", ("libssl-dev", "pkg-config", *COMPILER)),
    (r"curl-config", ("libcurl4-openssl-dev", "libssl-dev", *COMPILER)),
    (r"krb5-config|gssapi\.h", ("libkrb5-dev", *COMPILER)),
    (r"gdal-config|gdal\.h: No such file", ("libgdal-dev", *COMPILER)),
    (r"Could not find the (GDAL|GEOS) library", ("gdal-bin",)),
    (r"MagickWand shared library not found", ("libmagickwand-dev",)),
    (r"zbar shared library", ("libzbar0",)),
    # Programs of build commands
    (r"Can't find (msgfmt|msguniq|msgmerge|xgettext)|\bmsgfmt: (command )?not found", ("gettext",)),
    (r"\bnpm: (command )?not found|\bnpx: (command )?not found", ("nodejs", "npm")),
    (r"\bnode: (command )?not found|env: .node.: No such file", ("nodejs",)),
    (r"Git executable not found|\bgit: (command )?not found|No such file or directory: 'git'", ("git",)),
)


def packages_for(text: str) -> list[str]:
    """Return the Debian packages that the output of a failed build asks for."""
    found = [name for pattern, names in PACKAGES if re.search(pattern, text, re.M) for name in names]
    return list(dict.fromkeys(found))


def hint(text: str, present: list[str], python: str) -> str:
    """Return the line of app.yml that lets a failed build find what it lacks; "" if nothing is known.

    `present` are today's app_system_packages. An interpreter that uv installs brings its own headers; Debian's is used
    for `python3`, for its own version, and for a range that it fits.
    """
    debians = "{}.{}".format(*sys.version_info[:2])
    from_uv = python[0].isdigit() and python != debians and not python.startswith(f"{debians}.")
    unneeded = {*present, *(["python3-dev"] if from_uv else [])}
    missing = [name for name in packages_for(text) if name not in unneeded]
    if not missing:
        return ""
    return (
        f"it needs {', '.join(missing)} of Debian. Write into group_vars/ENV/app.yml, then run site.yml: "
        f"app_system_packages: [{', '.join([*present, *missing])}]"
    )
