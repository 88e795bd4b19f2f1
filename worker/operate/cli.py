"""The command `sluice`: its group, and how settings that are missing or wrong are told.

Exit codes: 0 done; 1 it failed, the message says why; 2 wrong usage or settings.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import click
from pydantic import ValidationError

from worker.errors import IngestError
from worker.settings import Settings


def installed_version() -> str:
    """Return the version of this distribution."""
    try:
        return version("sluice")
    except PackageNotFoundError:
        return "0 (not installed)"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(installed_version(), prog_name="sluice")
def sluice() -> None:
    """Files uploaded to Supabase Storage become searchable chunks in the same project."""


def read_settings() -> Settings:
    """Read the environment; raises click.UsageError that names each variable that is missing or wrong."""
    try:
        return Settings()
    except ValidationError as exc:
        problems = []
        for error in exc.errors(include_input=False, include_url=False):
            name = str(error["loc"][0])
            variable = name if name.isupper() else f"SLUICE_{name.upper()}"
            problems.append(f"  {variable}: {'is not set' if error['type'] == 'missing' else error['msg']}")
        raise click.UsageError("These settings must be corrected in the environment:\n" + "\n".join(problems)) from None


def complaint(exc: IngestError) -> click.ClickException:
    """Return what ends a command with status 1 and the error's sentence; what only operators may read stands below."""
    return click.ClickException(exc.public_message + (f"\n({exc.detail})" if exc.detail else ""))
