"""The adapter of llama-cloud 2 against a scripted service, by the real package."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from tests.extras.conftest import Bucket, probe_both_ways
from tests.extras.refusals import POLLING, SUBMITTING, THROTTLED, THROTTLING
from tests.provider_double import ProviderDouble, Reply
from worker.errors import IngestError, Rejected, Transient, Unavailable
from worker.model import Source
from worker.pipeline.parse.llamacloud import LlamaCloudParser
from worker.pipeline.parse.parser import Lost
from worker.pipeline.parse.remote import Setup

UPLOAD, STATUS = "/api/v2/parse/upload", "/api/v2/parse/job-1"


@pytest.fixture
async def parser(setup: Callable[..., Setup]) -> AsyncIterator[LlamaCloudParser]:
    made = LlamaCloudParser(setup())
    yield made
    await made.aclose()


def page(number: object, text: str = "Text of the page.") -> dict[str, Any]:
    return {"page_number": number, "success": True, "markdown": text}


def failed(number: int) -> dict[str, Any]:
    return {"page_number": number, "success": False, "error": "It is too dark."}


def job(status: str, **more: Any) -> dict[str, Any]:
    return {"id": "job-1", "project_id": "project", "status": status, **more}


def done(double: ProviderDouble, *pages: dict[str, Any], status: str = "COMPLETED", **more: Any) -> None:
    double.on("GET", STATUS, Reply(body={"job": job(status, **more), "markdown": {"pages": list(pages)}}))


async def test_a_submit_is_one_upload_with_the_options_and_without_the_tenants_file_name(
    double: ProviderDouble, setup: Callable[..., Setup], source: Source, bucket: Bucket
) -> None:
    double.on("POST", UPLOAD, Reply(body=job("PENDING")))
    parser = LlamaCloudParser(setup(tier="agentic", version="2026-06-15", language="de", max_pages=99))
    assert await parser.submit(source) == "job-1"
    await parser.aclose()

    (request,) = double.requests
    assert request.headers["authorization"] == "Bearer llx-test"
    assert json.loads(request.form["configuration"].text) == {
        "tier": "agentic",
        "version": "2026-06-15",
        "page_ranges": {"max_pages": 100},
        "processing_options": {"ocr_parameters": {"languages": ["de"]}},
        "processing_control": {"job_failure_conditions": {"allowed_page_failure_ratio": 0.5}},
    }
    file = request.form["file"]
    assert (file.content, file.filename, file.content_type) == (
        b"%PDF-1.7 the bytes",
        "document.pdf",
        "application/pdf",
    )
    assert b"secret plans" not in request.body
    assert bucket.taken == ["llama-cloud"]


class Hook:
    url = "https://example.org/functions/v1/parse-webhook?token=unguessable"
    signing_secret: str | None = "signs it"


async def test_a_webhook_is_passed_on_with_what_signs_it(
    double: ProviderDouble, parser: LlamaCloudParser, source: Source
) -> None:
    double.on("POST", UPLOAD, Reply(body=job("PENDING")))
    await parser.submit(source, Hook())
    (call,) = json.loads(double.requests[0].form["configuration"].text)["webhook_configurations"]
    assert (call["webhook_url"], call["webhook_signing_secret"], call["webhook_output_format"]) == (
        Hook.url, Hook.signing_secret, "json",
    )  # fmt: skip
    assert "parse.partial_success" in call["webhook_events"]


@pytest.mark.parametrize(("status", "kind", "code"), SUBMITTING)
async def test_a_refused_upload_is_sent_once_and_has_its_verdict(
    double: ProviderDouble, parser: LlamaCloudParser, source: Source, status: int, kind: type[IngestError], code: str
) -> None:
    double.on("POST", UPLOAD, Reply(status, {"detail": "no"}))
    with pytest.raises(IngestError) as caught:
        await parser.submit(source)
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert len(double.requests) == 1  # the package would have sent it six times
    assert "llx-test" not in str(caught.value)


@pytest.mark.parametrize(("headers", "seconds"), THROTTLING)
async def test_a_429_holds_every_worker_back_and_is_not_repeated(
    double: ProviderDouble,
    parser: LlamaCloudParser,
    source: Source,
    bucket: Bucket,
    headers: Mapping[str, str],
    seconds: float,
) -> None:
    double.on("POST", UPLOAD, Reply(429, headers=headers))
    double.on("GET", STATUS, Reply(429, headers=headers))
    for call in (parser.submit(source), parser.poll("job-1")):
        with pytest.raises(THROTTLED):
            await call
    assert bucket.blocked == [("llama-cloud", seconds)] * 2
    assert len(double.requests) == 2


async def test_an_upload_without_an_answer_is_charged_and_not_repeated(
    double: ProviderDouble, parser: LlamaCloudParser, source: Source
) -> None:
    double.on("POST", UPLOAD, Reply(cut=0))
    with pytest.raises(Transient) as caught:
        await parser.submit(source)
    assert caught.value.code == "parser_reply_lost"
    assert len(double.requests) == 1


async def test_a_service_that_is_not_there_is_an_outage(setup: Callable[..., Setup], source: Source) -> None:
    parser = LlamaCloudParser(setup(base_url="http://127.0.0.1:9"))
    for call in (parser.submit(source), parser.poll("job-1")):
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.code == "parser_unreachable"
    await parser.aclose()


@pytest.mark.parametrize("body", [{"status": "PENDING"}, ["job-1"], "no JSON", {"id": None}, {"id": 7}])
async def test_an_upload_that_is_answered_without_an_id_is_tried_again(
    double: ProviderDouble, parser: LlamaCloudParser, source: Source, body: Any
) -> None:
    double.on("POST", UPLOAD, Reply(body=body))
    with pytest.raises(Transient) as caught:
        await parser.submit(source)
    assert caught.value.code == "parser_answer_malformed"


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "something new"])
async def test_what_is_not_done_is_pending_and_costs_one_request(
    double: ProviderDouble, parser: LlamaCloudParser, bucket: Bucket, status: str
) -> None:
    double.on("GET", STATUS, Reply(body={"job": job(status)}))
    assert await parser.poll("job-1") is None
    assert len(double.requests) == len(bucket.taken) == 1


async def test_pages_come_back_with_the_services_numbers_and_a_ruled_line_splits_none(
    double: ProviderDouble, parser: LlamaCloudParser
) -> None:
    done(double, page(2, "Second\n\n---\n\nstill second"), page(1, "# Harbour\r\n\r\nFirst"), usage={"credits": 6})
    parsed = await parser.poll("job-1")
    assert parsed is not None
    assert [(each.number, each.markdown) for each in parsed.pages] == [
        (1, "# Harbour\n\nFirst"), (2, "Second\n\n---\n\nstill second"),
    ]  # fmt: skip
    assert (parsed.title, parsed.credits, parsed.notes) == ("Harbour", 6.0, ())
    (request,) = double.requests
    assert request.query == {"expand": ["markdown", "usage"]}


@pytest.mark.parametrize("status", ["COMPLETED", "PARTIAL_SUCCESS"])
async def test_pages_that_failed_are_noted_and_the_others_kept(
    double: ProviderDouble, parser: LlamaCloudParser, status: str
) -> None:
    done(double, page(1), failed(2), page(4), failed(5), status=status)
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parse_pages_failed"  # three of five, where half may fail
    done(double, page(1), failed(2), page(3), page(4), failed(5), status=status)
    parsed = await parser.poll("job-1")
    assert parsed is not None
    assert parsed.notes == ("Pages that could not be read: 2, 5",)
    assert [each.number for each in parsed.pages] == [1, 2, 3, 4, 5]
    assert parsed.pages[1].markdown == ""


async def test_all_pages_failed_is_a_refusal_however_many_may_fail(
    double: ProviderDouble, setup: Callable[..., Setup]
) -> None:
    parser = LlamaCloudParser(setup(failed_share=1))
    done(double, failed(1), failed(2))
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parse_pages_failed"
    await parser.aclose()


async def test_the_tier_without_markdown_is_asked_for_its_text(
    double: ProviderDouble, setup: Callable[..., Setup]
) -> None:
    parser = LlamaCloudParser(setup(tier="fast"))
    text = {"pages": [{"page_number": 1, "text": "Plain text."}]}
    double.on("GET", STATUS, Reply(body={"job": job("COMPLETED"), "text": text}))
    parsed = await parser.poll("job-1")
    assert parsed is not None
    assert parsed.pages[0].markdown == "Plain text."
    assert double.requests[0].query["expand"] == ["text", "usage"]
    await parser.aclose()


async def test_a_result_without_its_pages_is_no_empty_document(
    double: ProviderDouble, parser: LlamaCloudParser
) -> None:
    double.on("GET", STATUS, Reply(body={"job": job("COMPLETED"), "markdown": None}))
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parse_empty"


@pytest.mark.parametrize("pages", [(), (page(1, ""), page(2, " \n"))], ids=["no pages", "blank pages"])
async def test_an_empty_result_is_a_refusal_with_a_code_and_no_empty_document(
    double: ProviderDouble, parser: LlamaCloudParser, pages: tuple[dict[str, Any], ...]
) -> None:
    done(double, *pages)
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parse_empty"


async def test_more_pages_than_may_be_is_a_refusal_and_never_a_cut(
    double: ProviderDouble, parser: LlamaCloudParser
) -> None:
    done(double, *(page(number) for number in range(1, 12)))
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "too_many_pages"


@pytest.mark.parametrize("number", [0, -1, "one", None, 1.5])
async def test_page_numbers_that_cannot_be_are_no_answer(
    double: ProviderDouble, parser: LlamaCloudParser, number: object
) -> None:
    done(double, page(number))
    with pytest.raises(Transient) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parser_answer_malformed"


@pytest.mark.parametrize(
    "body", [{}, {"job": job("COMPLETED"), "markdown": {"pages": ["page"]}}, ["no object"], "no JSON"]
)
async def test_a_result_that_is_none_is_asked_for_again(
    double: ProviderDouble, parser: LlamaCloudParser, body: Any
) -> None:
    double.on("GET", STATUS, Reply(body=body))
    with pytest.raises(Transient) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parser_answer_malformed"


@pytest.mark.parametrize(("status", "kind", "code"), POLLING)
async def test_a_refused_poll_is_asked_once_and_has_its_verdict(
    double: ProviderDouble, parser: LlamaCloudParser, status: int, kind: type[IngestError], code: str
) -> None:
    double.on("GET", STATUS, Reply(status, {"detail": "no"}))
    with pytest.raises(IngestError) as caught:
        await parser.poll("job-1")
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert len(double.requests) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        (job("FAILED", error_message="The PDF is password protected: boom"), Rejected, "pdf_encrypted"),
        (job("FAILED", error_message="PDF_IS_BROKEN"), Rejected, "file_corrupt"),
        (job("FAILED", error_message="Unsupported file type"), Rejected, "file_unsupported"),
        (job("FAILED", error_message="The job timed out"), Rejected, "parse_expired"),
        (job("EXPIRED"), Rejected, "parse_expired"),
        (job("FAILED", error_message="Internal error: boom"), Lost, "parse_failed_remotely"),
        (job("FAILED"), Lost, "parse_failed_remotely"),
        (job("CANCELED"), Rejected, "parse_cancelled"),
        (job("CANCELLED"), Rejected, "parse_cancelled"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
async def test_a_job_that_failed_is_never_an_empty_document(
    double: ProviderDouble, parser: LlamaCloudParser, answer: dict[str, str], kind: type[IngestError], code: str
) -> None:
    double.on("GET", STATUS, Reply(body={"job": answer}))
    with pytest.raises(IngestError) as caught:
        await parser.poll("job-1")
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert "boom" not in caught.value.public_message


async def test_a_probe_asks_for_projects_on_the_callers_client_and_takes_none_of_the_limit(
    parser: LlamaCloudParser, double: ProviderDouble, bucket: Bucket
) -> None:
    await probe_both_ways(parser, double)
    assert bucket.taken == []
