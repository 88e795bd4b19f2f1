"""Asks a service for as little as it answers, to know that it is there and takes our key."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from worker.errors import IngestError, Misconfigured, Throttled, Transient, Unavailable

KEY_REFUSED = "key_refused"
"""The code under which a refused key is written down, whichever service refuses it."""


async def ask(
    http: httpx.AsyncClient, url: str, headers: dict[str, str],
    *, service: str, settings: str, enough: Callable[[httpx.Response], bool] = lambda _answer: False,
) -> httpx.Response:  # fmt: skip
    """Send a GET and return the answer of status 2xx; `service` begins the sentences, `settings` says what to check.

    A refusal that is `enough` to know that the service is there and knows our key is returned too. Raises
    Misconfigured for a refused key and a wrong address, Throttled, Unavailable and Transient. The caller bounds the
    time.
    """
    try:
        answer = await http.get(url, headers=headers)
    except httpx.HTTPError as exc:
        raise unreachable(service, settings, type(exc).__name__) from exc
    refusal = refused(answer.status_code, service=service, settings=settings)
    if refusal is not None and not enough(answer):
        raise refusal
    return answer


def refused(status: int, *, service: str, settings: str) -> IngestError | None:
    """Return what an answer of this status means; None when it is a good one."""
    detail = f"HTTP {status}"
    match status:
        case 401 | 403:
            return Misconfigured(
                KEY_REFUSED, f"{service} refuses the key (HTTP {status}). Check {settings}.", detail=detail
            )
        case 429:
            return Throttled(
                "rate_limited", f"{service} asks to wait (HTTP 429). The work goes on by itself.", retry_after=10
            )
        case 404 | 405:
            return Misconfigured(
                "not_found", f"{service} is not at its address (HTTP {status}). Check {settings}.", detail=detail
            )
        case _ if status >= 500:
            return Unavailable("unavailable", f"{service} fails (HTTP {status}). Its status page may say more.")
        case _ if status >= 300:
            return Transient("unexpected_answer", f"{service} answered HTTP {status}. Check {settings}.", detail=detail)
    return None


def unreachable(service: str, settings: str, why: str) -> Unavailable:
    """Return what it means that nothing came back; `why` is a word, such as the class of what was raised."""
    return Unavailable(
        "unreachable", f"{service} does not answer ({why}). Check {settings} and the network.", detail=why
    )
