"""How long failed attempts wait."""

from __future__ import annotations

import random

from worker.queue.attempt import backoff


def test_pauses_double_from_five_seconds_and_stop_at_a_quarter_of_an_hour() -> None:
    randomness = random.Random(7)

    longest = [max(backoff(attempt, randomness).total_seconds() for _ in range(500)) for attempt in range(1, 12)]

    for attempt, seconds in enumerate(longest, 1):
        ceiling = min(900, 5 * 2 ** (attempt - 1))
        assert 0.95 * ceiling < seconds <= ceiling


def test_jobs_that_failed_together_come_back_spread_over_half_of_the_pause() -> None:
    randomness = random.Random(7)

    pauses = sorted(backoff(6, randomness).total_seconds() for _ in range(1000))

    assert 80 <= pauses[0] < 85
    assert 155 < pauses[-1] <= 160
    # No tenth of the span holds more than a sixth of the jobs: nothing clusters.
    span = [sum(80 + 8 * n <= pause < 88 + 8 * n for pause in pauses) for n in range(10)]
    assert max(span) < 1000 / 6


def test_a_thousandth_attempt_does_not_overflow() -> None:
    assert backoff(1000, random.Random(7)).total_seconds() <= 900
