"""The management API's few calls that a deployment makes, as documented, for the real CLI: a profile leads it here.

    async with ManagementDouble() as double:
        environment = double.environment(tmp_path)     # what points a CLI here
        ...
        double.functions["search"]["verify_jwt"], double.secrets

It keeps what it was given: functions by slug, each with the digest of its bundle, and the functions' settings, of which
it tells the SHA-256 only. A token that is not its own gets 401, another project 404.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

from tests.provider_double import ProviderDouble, Reply, Request

REF = "abcdefghijklmnopqrst"
TOKEN = "sbp_" + "0123456789" * 4


class ManagementDouble(ProviderDouble):
    """A project of one account."""

    def __init__(self) -> None:
        super().__init__()
        self.functions: dict[str, dict[str, Any]] = {}
        self.secrets: dict[str, str] = {}
        self.files: dict[str, set[str]] = {}
        self.held: asyncio.Event | None = None
        """Until this is set, nobody is told the functions' settings."""
        project = f"/v1/projects/{REF}"
        self.on("GET", "/v1/projects/*", lambda request: self._refused(request) or Reply(404, {"message": "Not found"}))
        self.on("GET", project, self._authorised(lambda _: Reply(200, _PROJECT)))
        self.on("GET", f"{project}/functions", self._authorised(lambda _: Reply(200, list(self.functions.values()))))
        self.on("PUT", f"{project}/functions", self._authorised(self._replace))
        self.on("POST", f"{project}/functions/deploy", self._authorised(self._deploy))
        self.on("GET", f"{project}/secrets", self._authorised(self._list_secrets))
        self.on("POST", f"{project}/secrets", self._authorised(self._set_secrets))

    def environment(self, directory: Path) -> dict[str, str]:
        """Return the variables that lead a CLI here; its profile is written into `directory`."""
        profile = directory / "profile.yaml"
        profile.write_text(
            f"name: double\napi_url: {self.url}\ndashboard_url: {self.url}\ndocs_url: {self.url}\n"
            "project_host: example.co\npooler_host: example.com\n"
        )
        return {"SUPABASE_PROFILE": str(profile), "SUPABASE_ACCESS_TOKEN": TOKEN}

    def changes(self) -> list[Request]:
        """Return every request that was not a question."""
        return [each for each in self.requests if each.method != "GET"]

    def _refused(self, request: Request) -> Reply | None:
        if request.headers.get("authorization") == f"Bearer {TOKEN}":
            return None
        return Reply(401, {"message": "Unauthorized"})

    def _authorised(self, answer: Any) -> Any:
        return lambda request: self._refused(request) or answer(request)

    def _deploy(self, request: Request) -> Reply:
        slug = request.query["slug"][0]
        metadata = json.loads(request.form["metadata"].content)
        boundary = request.headers["content-type"].partition("boundary=")[2].encode()
        self.files[slug] = {
            line.partition(b'filename="')[2].rstrip(b'"\r').decode()
            for line in request.body.split(b"\n")
            if b'filename="' in line
        }
        bundle = {
            "id": f"00000000-0000-4000-8000-{len(slug):012}", "slug": slug, "name": metadata.get("name", slug),
            "status": "ACTIVE", "version": self.functions.get(slug, {"version": 0})["version"] + 1,
            "created_at": 1764000000000, "updated_at": 1764000000000, "verify_jwt": metadata["verify_jwt"],
            "import_map": False, "entrypoint_path": metadata["entrypoint_path"],
            "ezbr_sha256": hashlib.sha256(request.body.replace(boundary, b"")).hexdigest(),
        }  # fmt: skip
        if request.query.get("bundleOnly", ["false"])[0] != "true":
            self.functions[slug] = bundle
        return Reply(201, bundle)

    def _replace(self, request: Request) -> Reply:
        for each in request.json:
            self.functions[each["slug"]] = {"updated_at": 1764000000000, **each}
        return Reply(200, {"functions": [self.functions[each["slug"]] for each in request.json]})

    def _list_secrets(self, _: Request) -> Reply:
        return Reply(
            200,
            [
                {
                    "name": name,
                    "value": hashlib.sha256(value.encode()).hexdigest(),
                    "updated_at": "2026-11-27T12:00:00Z",
                }
                for name, value in self.secrets.items()
            ],
            until=self.held,
        )

    def _set_secrets(self, request: Request) -> Reply:
        self.secrets |= {each["name"]: each["value"] for each in request.json}
        return Reply(201)


_PROJECT = {
    "id": REF, "ref": REF, "organization_id": "acme", "organization_slug": "acme", "name": "Sluice",
    "region": "eu-central-1", "created_at": "2026-01-01T00:00:00Z", "status": "ACTIVE_HEALTHY",
    "database": {
        "host": f"db.{REF}.example.co", "version": "17.6.1.054", "postgres_engine": "17", "release_channel": "ga",
    },
}  # fmt: skip
