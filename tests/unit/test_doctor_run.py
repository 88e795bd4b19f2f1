"""How checks are run: beside each other, within their time, and without the run ever failing."""

from __future__ import annotations

import asyncio
import time

import pytest

from worker.operate.doctor.check import Check, Problem
from worker.operate.doctor.examination import Examination
from worker.operate.doctor.run import examine

WRONG = Problem("wrong", "It is wrong: {what}.", "Put it right.")


@pytest.fixture
def examination(monkeypatch: pytest.MonkeyPatch) -> Examination:
    """An examination whose database's password is hush-hush."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://me:hush-hush@db.example.org/postgres")
    return Examination.begin()


async def well(_examination: Examination) -> str:
    return "Well."


async def slow(_examination: Examination) -> str:
    await asyncio.sleep(0.2)
    return "Well, after a while."


async def crashing(_examination: Examination) -> str:
    raise ZeroDivisionError("hush-hush")


async def wrong(_examination: Examination) -> str:
    raise WRONG.found(what="hush-hush, postgresql://me:hush-hush@db.example.org/postgres")


def check(name: str, run: object, **more: object) -> Check:
    return Check(name, "machine", "About it", run, (WRONG,), **more)  # type: ignore[arg-type]


async def test_what_is_too_slow_and_what_crashes_is_a_finding_and_the_rest_is_looked_at(
    examination: Examination,
) -> None:
    findings = await examine(
        examination, [check("one", slow, seconds=0.02), check("two", crashing), check("three", well)]
    )

    assert [(each.status, each.code) for each in findings] == [
        ("failed", "check_timed_out"), ("failed", "check_broken"), ("ok", None)
    ]  # fmt: skip
    assert findings[1].message.endswith("failed with ZeroDivisionError, so it says nothing about the installation.")


async def test_checks_that_do_not_need_each_other_run_side_by_side(examination: Examination) -> None:
    began = time.monotonic()
    findings = await examine(examination, [check(str(number), slow) for number in range(20)])

    assert {each.status for each in findings} == {"ok"}
    assert time.monotonic() - began < 2  # four seconds one after the other


async def test_what_needs_a_failed_check_is_skipped_also_at_second_hand(examination: Examination) -> None:
    findings = await examine(
        examination,
        [
            check("one", wrong), check("two", well, needs=("one",)), check("three", well, needs=("two",)),
            check("four", well, unless=("one",)), check("five", well, unless=("two",)),
        ],
    )  # fmt: skip

    assert [each.status for each in findings] == ["failed", "skipped", "skipped", "skipped", "ok"]
    assert [each.message for each in findings[1:4]] == ["Not looked at: one failed."] * 3


async def test_a_secret_that_slips_into_a_sentence_is_taken_out(examination: Examination) -> None:
    (finding,) = await examine(examination, [check("one", wrong)])

    assert finding.message == "It is wrong: …, …."
