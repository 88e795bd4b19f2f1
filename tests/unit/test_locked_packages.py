"""deno.json and deno.lock: everything pinned, with checksums, and no registry named."""

from __future__ import annotations

import json
import re

from local.deno import CLI_VERSION, REPOSITORY

CONFIGURATION = json.loads((REPOSITORY / "deno.json").read_text())
LOCK = json.loads((REPOSITORY / "deno.lock").read_text())


def test_every_import_is_an_exact_version() -> None:
    for name, specifier in CONFIGURATION["imports"].items():
        assert re.fullmatch(r"npm:(@[\w-]+/)?[\w-]+@\d+\.\d+\.\d+(/[\w-]+)?", specifier), name
    assert CONFIGURATION["lock"]["frozen"] is True


def test_the_lock_has_a_checksum_for_every_package_and_names_no_host() -> None:
    assert all(package["integrity"].startswith("sha512-") for package in LOCK["npm"].values())
    assert set(LOCK) == {"version", "specifiers", "npm", "workspace"}
    assert "://" not in (REPOSITORY / "deno.lock").read_text()


def test_the_supabase_cli_is_locked_at_the_version_that_is_run() -> None:
    assert LOCK["specifiers"][f"npm:@supabase/cli-linux-x64@{CLI_VERSION}"] == CLI_VERSION
