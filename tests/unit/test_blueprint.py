"""render.yaml: only what Render's published schema has for a worker from a Dockerfile, and what our worker reads.

The schema at render.com/schema/render.yaml.json has no licence to be kept here under, so the part that concerns such a
worker is written down below, with what the documentation adds: what Render refuses or ignores for a worker is no field.
"""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from typing import Annotated, Any, Literal

import click
import pytest
import yaml
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

import worker.__main__  # noqa: F401 - adds the commands to the group
from local.deno import REPOSITORY
from tests.image import dockerfile
from worker.operate.cli import sluice
from worker.settings import Settings

WRITTEN: dict[str, Any] = yaml.safe_load((REPOSITORY / "render.yaml").read_text())
GUIDE = (REPOSITORY / "docs" / "deploy.md").read_text()
FILE = dockerfile.read((REPOSITORY / "Dockerfile").read_text())
# After the drain: the verdicts of what is handed back, and five seconds at most for each of the pools.
MARGIN = 20

Key = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]
Instances = Annotated[int, Field(ge=1, le=100)]
Percent = Annotated[int, Field(ge=1, le=90)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Value(Strict):
    """A variable with a value that everybody may read: all that a group may hold."""

    key: Key
    value: str | int | float


class Asked(Strict):
    """A variable that Render asks for once, when the blueprint is first applied."""

    key: Key
    sync: Literal[False]


class FromGroup(Strict):
    fromGroup: str


class Scaling(Strict):
    minInstances: Instances
    maxInstances: Instances
    targetMemoryPercent: Percent | None = None
    targetCPUPercent: Percent | None = None

    @model_validator(mode="after")
    def _has_a_range_and_a_target(self) -> Scaling:
        if self.minInstances > self.maxInstances:
            raise ValueError("minInstances is more than maxInstances")
        if self.targetMemoryPercent is None and self.targetCPUPercent is None:
            raise ValueError("without a target nothing scales")
        return self


class Worker(Strict):
    type: Literal["worker"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]
    runtime: Literal["docker"]
    dockerfilePath: str
    dockerContext: str
    dockerCommand: str | None = None
    region: Literal["oregon", "ohio", "virginia", "frankfurt", "singapore"]
    plan: Literal["starter", "standard", "pro", "pro plus", "pro max", "pro ultra"]
    numInstances: Instances | None = None
    scaling: Scaling | None = None
    autoDeployTrigger: Literal["off", "commit", "checksPass"]
    preDeployCommand: str
    maxShutdownDelaySeconds: Annotated[int, Field(ge=1, le=300)]
    envVars: list[FromGroup | Asked | Value]

    @model_validator(mode="after")
    def _scales_in_one_way(self) -> Worker:
        if (self.numInstances is None) == (self.scaling is None):
            raise ValueError("either numInstances or scaling: Render does not look at the first beside the second")
        return self


class Group(Strict):
    name: str
    envVars: list[Value]


class Previews(Strict):
    generation: Literal["off", "manual", "automatic"]


class Blueprint(Strict):
    previews: Previews
    services: Annotated[list[Worker], Field(min_length=1)]
    envVarGroups: list[Group]

    @model_validator(mode="after")
    def _has_its_groups(self) -> Blueprint:
        groups = {group.name for group in self.envVarGroups}
        for service in self.services:
            for variable in service.envVars:
                if isinstance(variable, FromGroup) and variable.fromGroup not in groups:
                    raise ValueError(f"there is no group {variable.fromGroup}")
        return self


def changed(change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> dict[str, Any]:
    """Return the blueprint after `change(service, group)`."""
    written = copy.deepcopy(WRITTEN)
    change(written["services"][0], written["envVarGroups"][0])
    return written


def test_the_blueprint_is_one_that_render_takes() -> None:
    Blueprint.model_validate(WRITTEN)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        # What the earlier system's blueprint asked for, and Render never had.
        ("numReplicas", lambda service, group: service.update(numReplicas=2)),
        ("autoscaling", lambda service, group: service.update(autoscaling={"min": 1})),
        ("healthCheckTimeout", lambda service, group: service.update(healthCheckTimeout=5)),
        # What it has, but not for a worker, or not for one from a Dockerfile.
        ("healthCheckPath", lambda service, group: service.update(healthCheckPath="/live")),
        ("domains", lambda service, group: service.update(domains=["example.org"])),
        ("buildCommand", lambda service, group: service.update(buildCommand="make")),
        ("startCommand", lambda service, group: service.update(startCommand="sluice worker")),
        # The older forms of what has a newer one.
        ("env", lambda service, group: service.update(env="docker")),
        ("autoDeploy", lambda service, group: service.update(autoDeploy=True)),
        ("plan", lambda service, group: service.update(plan="free")),
        ("region", lambda service, group: service.update(region="mars")),
        ("type", lambda service, group: service.update(type="background")),
        ("autoDeployTrigger", lambda service, group: service.update(autoDeployTrigger=False)),
        ("maxShutdownDelaySeconds", lambda service, group: service.update(maxShutdownDelaySeconds=301)),
        ("either numInstances or scaling", lambda service, group: service.pop("numInstances")),
        ("either numInstances or scaling", lambda service, group: service.update(
            scaling={"minInstances": 1, "maxInstances": 2, "targetCPUPercent": 70})),
        ("there is no group", lambda service, group: group.update(name="other")),
        ("sync", lambda service, group: group["envVars"].append({"key": "OPENAI_API_KEY", "sync": False})),
        ("sync", lambda service, group: service["envVars"].append({"key": "X", "sync": False, "value": "x"})),
        ("key", lambda service, group: group["envVars"].append({"key": "slots", "value": 1})),
        ("value", lambda service, group: group["envVars"].append({"key": "SLUICE_X", "value": True})),
    ],
)  # fmt: skip
def test_what_render_refuses_or_ignores_is_found_out(where: str, change: Callable[..., Any]) -> None:
    with pytest.raises(ValidationError, match=where):
        Blueprint.model_validate(changed(change))


def variables() -> dict[str, str]:
    """Map each environment variable that the worker reads to the name of its setting."""
    found = {}
    for name, about in Settings.model_fields.items():
        alias = about.validation_alias
        names = alias.choices if isinstance(alias, AliasChoices) else [f"SLUICE_{name.upper()}"]
        found |= {str(one): name for one in names}
    return found


def complaints(written: dict[str, Any]) -> list[str]:
    """Return what a valid blueprint does wrong by our worker."""
    blueprint = Blueprint.model_validate(written)
    (service,), (group,) = blueprint.services, blueprint.envVarGroups
    known = variables()
    arguments = {
        one.value.partition("=")[0] for stage in FILE.stages for one in stage.instructions if one.name == "ARG"
    }
    values = {one.key: str(one.value) for one in group.envVars}
    values |= {one.key: str(one.value) for one in service.envVars if isinstance(one, Value)}
    asked = {one.key for one in service.envVars if isinstance(one, Asked)}
    given = {known[key] for key in asked | set(values) if key in known}
    secret = {name for name, about in Settings.model_fields.items() if "SecretStr" in str(about.annotation)}
    extras = values.get("SLUICE_EXTRAS", "").split()
    wanted = {values.get("SLUICE_EMBEDDER"), values.get("SLUICE_PARSER")} - {"openai"}
    drain = float(values.get("SLUICE_DRAIN_SECONDS", Settings.model_fields["drain_seconds"].default))
    found = [f"{key} is nothing that the worker or its build reads" for key in sorted(asked | set(values))
             if key not in known and key not in arguments]  # fmt: skip
    found += [f"{name} is required, and not there" for name, about in Settings.model_fields.items()
              if about.is_required() and name not in given]  # fmt: skip
    found += [f"{key} is a secret, and written down" for key in values if known.get(key) in secret]
    if service.maxShutdownDelaySeconds < drain + MARGIN:
        found.append("the worker is killed before it has handed its jobs back")
    if not (REPOSITORY / service.dockerContext / service.dockerfilePath).is_file():
        found.append("there is no such Dockerfile")
    if not is_command(service.preDeployCommand):
        found.append(f"{service.preDeployCommand} is no command of the image")
    found += [f"the image lacks {extra}" for extra in sorted(wanted - set(extras) - {None}, key=str)]
    return found


def is_command(line: str) -> bool:
    """Say whether a command line names one of sluice's commands that takes these arguments."""
    program, *words = shlex.split(line)
    command: click.Command = sluice
    while words and isinstance(command, click.Group):
        command = command.commands.get(words.pop(0), click.Command("unknown", params=[]))
    if program != "sluice" or command.name in ("sluice", "unknown") or isinstance(command, click.Group):
        return False
    try:
        command.make_context(command.name, words)
    except click.UsageError:
        return False
    return True


def test_the_blueprint_gives_the_worker_what_it_reads_and_time_to_drain() -> None:
    assert complaints(WRITTEN) == []


@pytest.mark.parametrize(
    ("complaint", "change"),
    [
        ("SLUICE_SLOT is nothing that the worker or its build reads",
         lambda service, group: group["envVars"].append({"key": "SLUICE_SLOT", "value": 4})),
        ("supabase_url is required, and not there",
         lambda service, group: service["envVars"].remove({"key": "SUPABASE_URL", "sync": False})),
        ("OPENAI_API_KEY is a secret, and written down",
         lambda service, group: group["envVars"].append({"key": "OPENAI_API_KEY", "value": "sk-x"})),
        ("the worker is killed before it has handed its jobs back",
         lambda service, group: service.update(maxShutdownDelaySeconds=160)),
        ("there is no such Dockerfile", lambda service, group: service.update(dockerfilePath="worker/Dockerfile")),
        ("sluice doctors is no command of the image",
         lambda service, group: service.update(preDeployCommand="sluice doctors")),
        ("sluice doctor --once migrations is no command of the image",
         lambda service, group: service.update(preDeployCommand="sluice doctor --once migrations")),
        ("sluice quota is no command of the image",
         lambda service, group: service.update(preDeployCommand="sluice quota")),
        ("the image lacks llama-cloud",
         lambda service, group: group["envVars"].append({"key": "SLUICE_PARSER", "value": "llama-cloud"})),
    ],
)  # fmt: skip
def test_a_blueprint_that_does_not_fit_the_worker_is_found_out(complaint: str, change: Callable[..., Any]) -> None:
    assert complaint in complaints(changed(change))


def test_the_worker_takes_the_blueprints_values_with_empty_answers_to_what_is_optional(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in variables():
        monkeypatch.delenv(name, raising=False)
    (service,), (group,) = WRITTEN["services"], WRITTEN["envVarGroups"]
    for variable in (*service["envVars"], *group["envVars"]):
        monkeypatch.setenv(variable.get("key", "SLUICE_EXTRAS"), str(variable.get("value", "")))
    for name in ("DATABASE_URL", "SUPABASE_URL", "SUPABASE_SECRET_KEY"):
        monkeypatch.setenv(name, "https://example.org")

    settings = Settings()

    assert (settings.slots, settings.drain_seconds, settings.embed_threads) == (2, 150, 1)
    assert settings.openai_api_key is settings.llama_cloud_api_key is settings.webhook_url is None
    assert settings.supabase_secret_key == SecretStr("https://example.org")


def test_a_required_variable_that_was_left_empty_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "")

    with pytest.raises(ValidationError) as caught:
        Settings()

    assert ("DATABASE_URL", "missing") in [(error["loc"][0], error["type"]) for error in caught.value.errors()]


def test_the_guides_block_for_scaling_is_one_that_render_takes() -> None:
    block = re.search(r"```yaml\n(    scaling:\n.*?)```", GUIDE, re.DOTALL)
    assert block is not None
    scaling = yaml.safe_load(block[1])

    Blueprint.model_validate(changed(lambda service, group: (service.pop("numInstances"), service.update(scaling))))


@pytest.mark.parametrize("problem", [{"minInstances": 5}, {"targetCPUPercent": None, "targetMemoryPercent": None},
                                     {"targetCPUPercent": 95}, {"maxInstances": 101}])  # fmt: skip
def test_scaling_without_a_range_or_a_target_is_refused(problem: dict[str, Any]) -> None:
    whole = {"minInstances": 1, "maxInstances": 4, "targetCPUPercent": 70}
    Scaling.model_validate(whole)

    with pytest.raises(ValidationError):
        Scaling.model_validate(whole | problem)
