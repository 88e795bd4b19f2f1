"""The adapter of llama-parse against a scripted service, by the real package."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from tests.extras.conftest import Bucket, probe_both_ways
from tests.extras.refusals import POLLING, SUBMITTING, THROTTLED, THROTTLING
from tests.provider_double import ProviderDouble, Reply
from worker.errors import IngestError, Rejected, Transient, Unavailable
from worker.model import Source
from worker.pipeline.filetype import MARKDOWN
from worker.pipeline.parse.llamaparse import LlamaParseParser
from worker.pipeline.parse.parser import Lost
from worker.pipeline.parse.remote import Setup

UPLOAD, STATUS, RESULT = "/api/parsing/upload", "/api/parsing/job/job-1", "/api/parsing/job/job-1/result/json"


@pytest.fixture
async def parser(setup: Callable[..., Setup]) -> AsyncIterator[LlamaParseParser]:
    made = LlamaParseParser(setup())
    yield made
    await made.aclose()


def page(number: object, text: str = "Text of the page.", **more: Any) -> dict[str, Any]:
    return {"page": number, "md": text, "text": text, **more}


def done(double: ProviderDouble, *pages: dict[str, Any], status: str = "SUCCESS", **about: Any) -> None:
    double.on("GET", STATUS, Reply(body={"id": "job-1", "status": status}))
    double.on("GET", RESULT, Reply(body={"pages": list(pages), "job_metadata": about}))


async def test_a_submit_is_one_upload_with_the_options_and_without_the_tenants_file_name(
    double: ProviderDouble,
    setup: Callable[..., Setup],
    source: Source,
    bucket: Bucket,
    capsys: pytest.CaptureFixture[str],
) -> None:
    double.on("POST", UPLOAD, Reply(body={"id": "job-1", "status": "PENDING"}))
    parser = LlamaParseParser(setup(tier="agentic", version="2026-06-15", language="de", max_pages=99))
    assert await parser.submit(source) == "job-1"
    await parser.aclose()

    (request,) = double.requests
    assert request.headers["authorization"] == "Bearer llx-test"
    form = request.form
    assert {name: form[name].text for name in ("tier", "version", "language", "max_pages", "page_error_tolerance")} == {
        "tier": "agentic", "version": "2026-06-15", "language": "de", "max_pages": "100", "page_error_tolerance": "0.5",
    }  # fmt: skip
    assert (form["file"].content, form["file"].filename) == (b"%PDF-1.7 the bytes", "document.pdf")
    assert "webhook_url" not in form
    assert b"secret plans" not in request.body
    assert bucket.taken == ["llama-parse"]
    assert capsys.readouterr().out == ""


async def test_a_webhook_is_passed_on_with_its_token(
    double: ProviderDouble, parser: LlamaParseParser, source: Source
) -> None:
    double.on("POST", UPLOAD, Reply(body={"id": "job-1"}))
    await parser.submit(source, Hook())
    await parser.submit(source)
    first, second = double.requests
    assert first.form["webhook_url"].text == Hook.url
    assert "webhook_url" not in second.form


class Hook:
    url = "https://example.org/functions/v1/parse-webhook?token=unguessable"
    signing_secret: str | None = "not for this interface"


async def test_a_text_file_is_named_by_its_kind(
    double: ProviderDouble, parser: LlamaParseParser, source: Source
) -> None:
    double.on("POST", UPLOAD, Reply(body={"id": "job-1"}))
    await parser.submit(dataclasses.replace(source, mime_type=MARKDOWN))
    assert double.requests[0].form["file"].filename == "document.md"


@pytest.mark.parametrize(("status", "kind", "code"), SUBMITTING)
async def test_a_refused_upload_is_sent_once_and_has_its_verdict(
    double: ProviderDouble, parser: LlamaParseParser, source: Source, status: int, kind: type[IngestError], code: str
) -> None:
    double.on("POST", UPLOAD, Reply(status, {"detail": "no"}))
    with pytest.raises(IngestError) as caught:
        await parser.submit(source)
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert len(double.requests) == 1  # the package would have sent it five times
    assert "llx-test" not in str(caught.value)


@pytest.mark.parametrize(("headers", "seconds"), THROTTLING)
async def test_a_429_holds_every_worker_back_and_is_not_repeated(
    double: ProviderDouble,
    parser: LlamaParseParser,
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
    assert bucket.blocked == [("llama-parse", seconds)] * 2
    assert len(double.requests) == 2


async def test_an_upload_without_an_answer_is_charged_and_not_repeated(
    double: ProviderDouble, parser: LlamaParseParser, source: Source
) -> None:
    double.on("POST", UPLOAD, Reply(cut=0))
    with pytest.raises(Transient) as caught:
        await parser.submit(source)
    assert caught.value.code == "parser_reply_lost"
    assert len(double.requests) == 1


async def test_a_service_that_is_not_there_is_an_outage(setup: Callable[..., Setup], source: Source) -> None:
    parser = LlamaParseParser(setup(base_url="http://127.0.0.1:9"))
    for call in (parser.submit(source), parser.poll("job-1")):
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.code == "parser_unreachable"
    await parser.aclose()


@pytest.mark.parametrize("body", [{"status": "PENDING"}, ["job-1"], "no JSON", {"id": None}, {"id": 7}])
async def test_an_upload_that_is_answered_without_an_id_is_tried_again(
    double: ProviderDouble, parser: LlamaParseParser, source: Source, body: Any
) -> None:
    double.on("POST", UPLOAD, Reply(body=body))
    with pytest.raises(Transient) as caught:
        await parser.submit(source)
    assert caught.value.code == "parser_answer_malformed"


@pytest.mark.parametrize("status", ["PENDING", "RUNNING", "something new"])
async def test_what_is_not_done_is_pending_and_costs_one_request(
    double: ProviderDouble, parser: LlamaParseParser, bucket: Bucket, status: str
) -> None:
    double.on("GET", STATUS, Reply(body={"id": "job-1", "status": status}))
    assert await parser.poll("job-1") is None
    assert len(double.requests) == len(bucket.taken) == 1


async def test_pages_come_back_with_the_services_numbers_and_a_ruled_line_splits_none(
    double: ProviderDouble, parser: LlamaParseParser
) -> None:
    done(
        double,
        page(2, "Second\n\n---\n\nstill second"),
        page(1, "# Harbour\r\n\r\nFirst"),
        job_pages=2,
        job_credits_usage=6,
    )
    parsed = await parser.poll("job-1")
    assert parsed is not None
    assert [(each.number, each.markdown) for each in parsed.pages] == [
        (1, "# Harbour\n\nFirst"), (2, "Second\n\n---\n\nstill second"),
    ]  # fmt: skip
    assert (parsed.title, parsed.credits, parsed.notes) == ("Harbour", 6.0, ())
    assert [request.path for request in double.requests] == [STATUS, RESULT]


async def test_partial_success_keeps_its_pages_and_notes_those_that_are_missing(
    double: ProviderDouble, parser: LlamaParseParser
) -> None:
    done(double, page(1), page(2, status="ERROR"), page(4), job_pages=5, status="PARTIAL_SUCCESS")
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parse_pages_failed"  # three of five, where half may fail
    done(double, page(1), page(3), page(4), job_pages=5, status="PARTIAL_SUCCESS")
    parsed = await parser.poll("job-1")
    assert parsed is not None
    assert parsed.notes == ("Pages that could not be read: 2, 5",)
    assert [each.number for each in parsed.pages] == [1, 2, 3, 4, 5]
    assert parsed.pages[1].markdown == ""


async def test_all_pages_failed_is_a_refusal_however_many_may_fail(
    double: ProviderDouble, setup: Callable[..., Setup]
) -> None:
    parser = LlamaParseParser(setup(failed_share=1))
    done(double, page(1, status="FAILED"), page(2, status="FAILED"))
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parse_pages_failed"
    await parser.aclose()


@pytest.mark.parametrize("pages", [(), (page(1, ""), page(2, " \n"))], ids=["no pages", "blank pages"])
async def test_an_empty_result_is_a_refusal_with_a_code_and_no_empty_document(
    double: ProviderDouble, parser: LlamaParseParser, pages: tuple[dict[str, Any], ...]
) -> None:
    done(double, *pages)
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parse_empty"


async def test_more_pages_than_may_be_is_a_refusal_and_never_a_cut(
    double: ProviderDouble, parser: LlamaParseParser
) -> None:
    done(double, *(page(number) for number in range(1, 12)))
    with pytest.raises(Rejected) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "too_many_pages"


@pytest.mark.parametrize("number", [0, -1, "1", None, 1.0, True])
async def test_page_numbers_that_cannot_be_are_no_answer(
    double: ProviderDouble, parser: LlamaParseParser, number: object
) -> None:
    done(double, page(number))
    with pytest.raises(Transient) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parser_answer_malformed"


@pytest.mark.parametrize("body", [{"pages": ["page"]}, ["no object"], "no JSON", {"pages": [page(1), page(1)]}])
async def test_a_result_that_is_none_is_asked_for_again(
    double: ProviderDouble, parser: LlamaParseParser, body: Any
) -> None:
    done(double)
    double.on("GET", RESULT, Reply(body=body))
    with pytest.raises(Transient) as caught:
        await parser.poll("job-1")
    assert caught.value.code == "parser_answer_malformed"


@pytest.mark.parametrize(("status", "kind", "code"), POLLING)
@pytest.mark.parametrize("where", ["status", "result"])
async def test_a_refused_poll_is_asked_once_and_has_its_verdict(
    double: ProviderDouble, parser: LlamaParseParser, where: str, status: int, kind: type[IngestError], code: str
) -> None:
    done(double, page(1))
    double.on("GET", STATUS if where == "status" else RESULT, Reply(status, {"detail": "no"}))
    with pytest.raises(IngestError) as caught:
        await parser.poll("job-1")
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert len(double.requests) == (1 if where == "status" else 2)


async def test_a_result_that_answered_500_is_there_at_the_next_poll(
    double: ProviderDouble, parser: LlamaParseParser
) -> None:
    done(double, page(1))
    double.on("GET", RESULT, Reply(500), Reply(body={"pages": [page(1)]}))
    with pytest.raises(Transient):
        await parser.poll("job-1")
    parsed = await parser.poll("job-1")
    assert parsed is not None
    assert len(parsed.pages) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "code"),
    [
        ({"status": "ERROR", "error_code": "PDF_IS_PASSWORD_PROTECTED"}, Rejected, "pdf_encrypted"),
        ({"status": "ERROR", "error_code": "PDF_IS_BROKEN", "error_message": "boom"}, Rejected, "file_corrupt"),
        ({"status": "ERROR", "error_code": "UNSUPPORTED_FILE_TYPE"}, Rejected, "file_unsupported"),
        ({"status": "ERROR", "error_code": "EXPIRED"}, Rejected, "parse_expired"),
        ({"status": "EXPIRED"}, Rejected, "parse_expired"),
        ({"status": "ERROR", "error_code": "NO_DATA_FOUND_IN_FILE"}, Rejected, "parse_empty"),
        ({"status": "ERROR", "error_code": "INTERNAL_ERROR", "error_message": "boom"}, Lost, "parse_failed_remotely"),
        ({"status": "ERROR"}, Lost, "parse_failed_remotely"),
        ({"status": "CANCELED"}, Rejected, "parse_cancelled"),
        ({"status": "CANCELLED"}, Rejected, "parse_cancelled"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
async def test_a_job_that_failed_is_never_an_empty_document(
    double: ProviderDouble, parser: LlamaParseParser, answer: dict[str, str], kind: type[IngestError], code: str
) -> None:
    double.on("GET", STATUS, Reply(body={"id": "job-1", **answer}))
    with pytest.raises(IngestError) as caught:
        await parser.poll("job-1")
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert "boom" not in caught.value.public_message


async def test_a_probe_asks_for_projects_on_the_callers_client_and_takes_none_of_the_limit(
    parser: LlamaParseParser, double: ProviderDouble, bucket: Bucket
) -> None:
    await probe_both_ways(parser, double)
    assert bucket.taken == []
