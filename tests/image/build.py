"""Carries out a Dockerfile in a folder, with this machine's Python in place of the base image's.

Each stage is built at the same path, ROOT, and moved aside when it is done, so that a script that names its
interpreter fits the stage that it is copied to. Absolute paths of the Dockerfile are moved below ROOT; a RUN that
names one outside of _OWN is refused, since it would write on this machine. The cache of pip and where it looks
for packages are this machine's, everything else comes from the Dockerfile.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.image import context, dockerfile
from tests.image.dockerfile import Dockerfile, Instruction, Stage

_OWN = ("opt", "build")
_PATH = re.compile(r"(?<![\w./}*-])/(?P<first>\w+)")
_INHERITED = ("HOME", "PIP_", "SSL_CERT", "REQUESTS_CA", "LANG", "LC_")


class BuildError(Exception):
    """An instruction failed; the message says which, and quotes the end of what it said."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a container would get: its root, its environment (paths moved), its user, and its command."""

    root: Path
    environment: Mapping[str, str]
    labels: Mapping[str, str]
    user: str
    entrypoint: Sequence[str]
    command: Sequence[str]

    def run(
        self, *arguments: str, temporary: Path, environment: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] | None = None, seconds: float = 60,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run the image's command, or `arguments` in its place, as a container with an empty environment would.

        `temporary` stands in for the file system that is mounted at TMPDIR, and belongs to the image's user.
        """
        argv, options = self.start(*arguments, temporary=temporary, environment=environment, entrypoint=entrypoint)
        return subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False, **options)

    def start(
        self, *arguments: str, temporary: Path, environment: Mapping[str, str] | None = None,
        entrypoint: Sequence[str] | None = None,
    ) -> tuple[list[str], dict[str, object]]:  # fmt: skip
        """Return a command line and what subprocess needs besides, to run it as the image's user."""
        program, *first = self.entrypoint if entrypoint is None else entrypoint
        env = {**self.environment, "TMPDIR": str(temporary), "HOME": str(temporary), **(environment or {})}
        found = shutil.which(program, path=env["PATH"])
        if found is None:
            raise BuildError(f"There is no {program} on the image's PATH.")
        options: dict[str, object] = {"env": env, "cwd": self.root}
        if os.geteuid() == 0:
            uid, gid = (int(number) for number in self.user.split(":"))
            os.chown(temporary, uid, gid)
            options |= {"user": uid, "group": gid, "extra_groups": []}
        return [found, *first, *(arguments or (() if entrypoint else self.command))], options


def build(text: str, folder: Path, place: Path, arguments: Mapping[str, str] | None = None) -> Image:
    """Build the Dockerfile `text` with the context `folder` in the empty, world-readable `place`.

    Raises BuildError naming the line that failed. Needs the package registry where the Dockerfile does.
    """
    return _Build(dockerfile.read(text), folder, place, arguments or {}).run()


class _Build:
    def __init__(self, file: Dockerfile, folder: Path, place: Path, arguments: Mapping[str, str]) -> None:
        self._file = file
        self._folder = folder
        self._sent = context.sent(folder)
        self._given = arguments
        self._root = place / "root"
        self._done = place / "stages"
        self._done.mkdir()
        self._tools = _base(place)
        self._environment: dict[str, str] = {}
        self._variables: dict[str, str] = {}
        self._labels: dict[str, str] = {}
        self._said: dict[str, Sequence[str]] = {}
        self._where = "/"

    def run(self) -> Image:
        for stage in self._file.stages:
            self._begin(stage)
            for one in stage.instructions:
                try:
                    self._carry_out(one)
                except (OSError, BuildError) as exc:
                    raise BuildError(f"line {one.line}, {one.name} {one.value[:100]}: {exc}") from exc
            if stage is not self._file.final:
                self._root.rename(self._done / stage.name)
        _seal(self._root)
        return Image(
            self._root, self._environment, self._labels, self._said["USER"][0],
            self._said["ENTRYPOINT"], self._said["CMD"],
        )  # fmt: skip

    def _begin(self, stage: Stage) -> None:
        self._root.mkdir()
        self._environment = {"PATH": f"{self._tools}:/usr/local/bin:/usr/bin:/bin"}
        self._variables = dict(self._environment)
        self._labels, self._said, self._where = {}, {}, "/"

    def _carry_out(self, one: Instruction) -> None:
        value = dockerfile.replace(one.value, self._variables)
        match one.name:
            case "ARG":
                name, _, default = value.partition("=")
                self._variables[name] = self._given.get(name, default)
            case "ENV":
                for name, text in one.pairs().items():
                    self._environment[name] = self._moved(dockerfile.replace(text, self._variables))
                self._variables |= self._environment
            case "LABEL":
                self._labels |= {key: dockerfile.replace(text, self._variables) for key, text in one.pairs().items()}
            case "WORKDIR":
                self._where = value
                self._inside(".").mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(one)
            case "RUN":
                self._run(one)
            case _:
                self._said[one.name] = one.words()

    def _copy(self, one: Instruction) -> None:
        *sources, target = one.words()
        here, files = self._folder, self._sent
        if "from" in one.flags:
            here = self._done / one.flags["from"]
            files = []
        to = self._inside(target)
        for source in sources:
            if "from" in one.flags:
                shutil.copytree(here / source.lstrip("/"), to, symlinks=True, dirs_exist_ok=True, copy_function=_link)
                continue
            below = [path for path in files if path.startswith(f"{source}/")]
            if source not in files and not below:
                raise BuildError(f"{source} is not in the build context: it is missing, or .dockerignore keeps it out.")
            for path in below or [source]:
                into = to / Path(path).relative_to(source) if below else to / path if target.endswith("/") else to
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(here / path, into)

    def _run(self, one: Instruction) -> None:
        foreign = [match.group() for match in _PATH.finditer(one.value) if match["first"] not in _OWN]
        if foreign:
            raise BuildError(f"it names {foreign[0]}, which would be this machine's.")
        inherited = {name: value for name, value in os.environ.items() if name.startswith(_INHERITED)}
        # Layers must not hold pip's cache; here it is kept elsewhere, and saves what was downloaded before.
        own = {name: value for name, value in self._variables.items() if name != "PIP_NO_CACHE_DIR"}
        done = subprocess.run(
            ["/bin/sh", "-c", self._moved(one.value)], cwd=self._inside("."), env={**inherited, **own},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise BuildError(f"exit status {done.returncode}\n{done.stdout[-3000:]}")

    def _inside(self, path: str) -> Path:
        """Return where a path of the image lies, relative ones from its working directory."""
        return self._root / (Path("/") / self._where / path).relative_to("/")

    def _moved(self, text: str) -> str:
        return _PATH.sub(lambda m: f"{self._root}{m.group()}" if m["first"] in _OWN else m.group(), text)


def _base(place: Path) -> Path:
    """Return a folder with the `python` and `pip` of the base image: this machine's, readable for everybody."""
    tools = place / "base"
    tools.mkdir()
    python = Path(sys.base_prefix) / "bin" / f"python{sysconfig.get_python_version()}"
    if not all(folder.stat().st_mode & stat.S_IXOTH for folder in python.resolve().parents):
        python = _copy_python(python.resolve(), place / "python")
    (tools / "python").symlink_to(python)
    pip = tools / "pip"
    pip.write_text(f'#!/bin/sh\nexec {sys.executable} -m pip "$@"\n')
    pip.chmod(0o755)
    return tools


def _copy_python(python: Path, to: Path) -> Path:
    """Copy an interpreter with its library; one below a home directory is closed to the image's user."""
    library = python.parents[1] / "lib" / f"python{sysconfig.get_python_version()}"
    ignored = shutil.ignore_patterns("site-packages", "test", "idlelib", "tkinter", "ensurepip", "config-*")
    shutil.copytree(library, to / "lib" / library.name, ignore=ignored, copy_function=_link)
    (to / "bin").mkdir()
    shutil.copy(python, to / "bin" / python.name)
    return to / "bin" / python.name


def _link(source: str, target: str) -> None:
    """Give a file a second name, which nobody writes to, instead of a copy; a copy on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _seal(root: Path) -> None:
    """Take every right to write away, for those who build without being root and then own what they built."""
    for place, _, files in os.walk(root, topdown=False):
        for path in (*(Path(place) / name for name in files), Path(place)):
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
