"""Quotas, organisations and operators through the real client, on the running stack."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from postgrest.exceptions import APIError
from storage3.exceptions import StorageApiError

from local.stack import Stack
from local.worker_process import working
from tests.integration.storage_world import token
from tests.people import Person, Project

TEXT = b"# Pier\n\nThe pier takes vessels of 100 metres."


async def set_quota(project: Project, person: Person, **limits: int) -> None:
    values = (limits.get(name) for name in ("bytes", "files", "pages", "running"))
    await project.connection.execute("select ingest.set_quota($1::uuid, $2, $3, $4, $5)", person.id, *values)


async def rpc(person: Person, function: str, **arguments: Any) -> Any:
    return (await person.client.rpc(function, arguments).execute()).data


async def test_the_client_reads_which_limit_refused_its_upload_and_nothing_is_stored(
    project: Project, ada: Person
) -> None:
    await set_quota(project, ada, files=1, bytes=1_000)
    await ada.upload("a.md", TEXT)
    for name, content, said in (("b.md", TEXT, "2 of 1 files"), ("a.md", b"x" * 2_000, "of 1000 bytes")):
        with pytest.raises(StorageApiError) as refused:
            await ada.upload(name, content, upsert=name == "a.md")
        assert refused.value.message.startswith("quota_exceeded: with this file there would be ")
        assert said in refused.value.message
        assert str(refused.value.status) == "403"
    assert await ada.client.storage.from_("documents").download(f"{ada.folder}/a.md") == TEXT
    await ada.upload("a.md", TEXT + b" Again.", upsert=True)
    assert await project.count("public.documents", ada.id) == 1


async def test_of_twenty_uploads_at_once_no_more_than_fit_are_read(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    await set_quota(project, ada, files=5)
    answers = await asyncio.gather(
        *(ada.upload(f"{number}.md", TEXT, mime_type="text/markdown") for number in range(20)), return_exceptions=True
    )
    stored = [answer for answer in answers if isinstance(answer, str)]
    assert len(stored) >= 5
    assert all(isinstance(answer, StorageApiError) for answer in answers if not isinstance(answer, str))
    async with working(stack, temporary_directory / "quotas.log"):
        states = [(await project.settled(path))["state"] for path in stored]
        assert sorted(states) == ["failed"] * (len(stored) - 5) + ["ready"] * 5


async def test_what_a_signed_url_lets_past_is_kept_and_read_when_the_quota_is_raised(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person
) -> None:
    await set_quota(project, ada, bytes=20)
    bucket, path = ada.client.storage.from_("documents"), f"{ada.folder}/signed.md"
    signed = await bucket.create_signed_upload_url(path)
    await bucket.upload_to_signed_url(path, signed["token"], TEXT, {"content-type": "text/markdown"})
    async with working(stack, temporary_directory / "signed.log"):
        document = await project.settled(path)
        assert (document["state"], document["error_code"]) == ("failed", "quota_exceeded")
        assert document["error_message"] == (
            f"with this file there would be {len(TEXT)} of 20 bytes. Delete files, or ask the operator for more space."
        )
        assert await bucket.download(path) == TEXT
        job = await project.connection.fetchrow("select * from public.jobs where document_id = $1", document["id"])
        assert job is not None
        assert (job["state"], job["attempt"]) == ("discarded", 0)
        await set_quota(project, ada, bytes=1_000)
        await project.until("select * from public.documents where name = $1", path,
                            when=lambda row: row["state"] == "ready")  # fmt: skip


async def test_a_resumable_upload_is_refused_when_it_begins(stack: Stack, project: Project, ada: Person) -> None:
    await set_quota(project, ada, bytes=1_000)
    session = await ada.client.auth.get_session()
    assert session is not None

    async def begin(size: int) -> httpx.Response:
        named = {"bucketName": "documents", "objectName": f"{ada.folder}/{size}.bin", "contentType": "text/plain"}
        told = ",".join(f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in named.items())
        return await ada.http.post(
            f"{stack.api_url}/storage/v1/upload/resumable",
            headers={
                "apikey": stack.publishable_key, "authorization": f"Bearer {session.access_token}",
                "tus-resumable": "1.0.0", "upload-length": str(size), "upload-metadata": told,
            },
        )  # fmt: skip

    assert (await begin(1_000)).status_code == 201
    refused = await begin(1_001)
    assert refused.status_code >= 400
    assert "quota_exceeded: with this file there would be 1001 of 1000 bytes" in refused.text
    assert await project.count("public.documents", ada.id) == 0


async def test_an_organisation_is_made_shared_and_left_through_the_client(ada: Person, bob: Person) -> None:
    tenant = await rpc(ada, "create_organisation", name="Harbour")
    path = f"{tenant}/a.md"
    with pytest.raises(StorageApiError):
        await bob.client.storage.from_("documents").upload(path, TEXT)
    invitation = await rpc(ada, "invite_member", tenant=tenant, role="editor", member=bob.id)
    assert [row["tenant_name"] for row in await rpc(bob, "my_invitations")] == ["Harbour"]
    assert await rpc(bob, "accept_invitation", invitation=invitation) == tenant
    await bob.client.storage.from_("documents").upload(path, TEXT)
    assert await ada.client.storage.from_("documents").download(path) == TEXT
    assert await rpc(ada, "remove_member", tenant=tenant, member=bob.id) is True
    with pytest.raises(StorageApiError):
        await bob.client.storage.from_("documents").download(path)
    with pytest.raises(APIError) as refused:
        await rpc(ada, "leave_organisation", tenant=tenant)
    assert "last admin" in refused.value.message


async def test_an_operator_is_whose_app_metadata_says_so(stack: Stack, ada: Person) -> None:
    async def retry(signed: str) -> httpx.Response:
        return await ada.http.post(
            f"{stack.api_url}/rest/v1/rpc/retry_jobs", json={"code": "internal"},
            headers={"apikey": stack.publishable_key, "authorization": f"Bearer {signed}"},
        )  # fmt: skip

    # Signed here: the local Auth leaves the metadata out of its tokens, the hosted one does not.
    role: dict[str, Any] = {"sluice_role": "operator"}
    allowed = await retry(token(stack.jwt_secret, ada.id, app_metadata=role))
    assert (allowed.status_code, allowed.json()) == (200, [{"done": 0, "skipped": 0}])
    for claims in ({}, {"user_metadata": role}, role):
        refused = await retry(token(stack.jwt_secret, ada.id, **claims))
        assert (refused.status_code, refused.json()["code"]) == (403, "42501")
