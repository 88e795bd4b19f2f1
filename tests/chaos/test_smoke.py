"""A short chaos run in every test run: real workers, real signals, a real crash of Postgres."""

from __future__ import annotations

import json

import pytest

from tests.chaos.run import Settings, passed, run


@pytest.mark.timeout(150)
async def test_nothing_is_lost_or_doubled_while_workers_and_the_database_are_killed() -> None:
    report = await run(Settings(count=60, seed=4, rate=8, fault_rate=3))

    assert passed(report), json.dumps(report, indent=1)
    assert report["kills"] >= 3
    assert report["jobs"] >= 60
    assert report["injected"]["crash of Postgres"] >= 1
    assert report["provider"]["429"] > 0
