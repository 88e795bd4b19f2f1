"""The scripts without running them: they explain themselves, and are bash that macOS's 3.2 reads too."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from local import deno

SCRIPTS = sorted(path for path in (deno.REPOSITORY / "scripts").iterdir() if not path.name.startswith("_"))
BASH = [*SCRIPTS, deno.REPOSITORY / "scripts" / "_setup.sh", deno.REPOSITORY / ".ci" / "run"]
# What came after bash 3.2: associative arrays, mapfile, case changes, &>>, negative substring lengths, wait -n.
_NEWER = re.compile(r"declare -[An]|local -n|mapfile|readarray|\$\{\w+(,,?|\^\^?)\}|&>>|\|&|wait -n|\[\[ -v ")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_explains_itself_from_anywhere_without_installing(script: Path) -> None:
    done = subprocess.run([script, "--help"], cwd="/", capture_output=True, text=True, timeout=20, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("scripts/")
    assert len(done.stdout.splitlines()) > 3
    assert done.stderr == ""


@pytest.mark.parametrize("script", BASH, ids=lambda path: path.name)
def test_a_script_is_sound_bash(script: Path) -> None:
    text = script.read_text()

    parsed = subprocess.run(["bash", "-n", script], capture_output=True, text=True, timeout=20, check=False)

    assert parsed.returncode == 0, parsed.stderr
    assert _NEWER.search(text) is None
    if script in SCRIPTS:
        assert os.access(script, os.X_OK)
        assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize(
    ("script", "module"),
    [
        ("verify", "local.verify"),
        ("demo", "local.demo"),
        ("dev", "local.develop"),
        ("bench", "tests.benchmarks.ingest"),
        ("deploy", "local.deploy"),
    ],
)
def test_a_scripts_help_names_every_option_of_its_program(script: str, module: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(deno.REPOSITORY)}
    program = subprocess.run(
        [sys.executable, "-P", "-m", module, "--help"], env=environment, capture_output=True, text=True, check=True
    )
    options = set(re.findall(r"--[a-z-]+", program.stdout)) - {"--help"}

    said = (deno.REPOSITORY / "scripts" / script).read_text().split("\nset -euo")[0]

    assert options
    assert {option for option in options if option not in said} == set()


def test_an_unknown_option_is_wrong_usage() -> None:
    environment = os.environ | {"PYTHONPATH": str(deno.REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "local.demo", "--nonsense"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert "--nonsense" in done.stderr


def test_without_a_python_the_scripts_say_which_one_they_need(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "sed"):
        (tmp_path / name).symlink_to(shutil.which(name) or pytest.fail(f"{name} is not here"))

    done = subprocess.run(
        [deno.REPOSITORY / "scripts" / "demo"], env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stderr.startswith("No Python 3.11 or newer was found.")
