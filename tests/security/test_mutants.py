"""Files broken at random: each gets a verdict from a real worker, and none kills it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from local.stack import Stack
from tests import mutants
from tests.conftest import Counted
from tests.people import Person, Project

FILES = 200


@pytest.mark.timeout(240)
async def test_200_mutated_files_end_with_a_verdict_and_the_worker_outlives_them(
    stack: Stack, temporary_directory: Path, project: Project, ada: Person, bob: Person, counted: Counted
) -> None:
    seed = random.SystemRandom().randrange(10**9)
    log = temporary_directory / "mutants-worker.log"
    report = await mutants.run(stack, project, [ada, bob], FILES, seed, log)

    assert report.faults == [], report
    counted("mutated files", report.files)
    counted("worker deaths by mutated files", report.worker_deaths)


def test_a_mutant_is_the_same_for_the_same_seed_and_differs_from_its_original() -> None:
    whole = mutants.originals()
    made = [mutants.mutant(whole, number, 7) for number in range(70)]

    assert made == [mutants.mutant(whole, number, 7) for number in range(70)]
    assert {name.rsplit(".", 1)[1] for name, _ in made} == set(whole)
    assert sum(data == whole[name.rsplit(".", 1)[1]] for name, data in made) == 0
    assert len({data for _, data in made}) == len(made)
