"""What both extras' contract tests share: the guard, the double, limits that remember, and files to send."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from tests import network
from tests.provider_double import ProviderDouble, Reply
from worker.db.pool import Database
from worker.errors import Misconfigured
from worker.model import Source
from worker.pipeline.filetype import PDF
from worker.pipeline.limits import Limits
from worker.pipeline.parse.answers import Bounds
from worker.pipeline.parse.remote import Setup
from worker.queue.probes import Probed

network.install()


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """Fail every test that reaches beyond loopback."""
    network.refused.clear()
    yield
    if network.refused:
        pytest.fail(f"the test went beyond loopback: {', '.join(network.refused)}")


class Bucket:
    """Stands where the database does for limits: grants everything, and remembers."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.blocked: list[tuple[str, float]] = []

    async def fetchval(self, name: str, *arguments: Any) -> Any:
        if name == "take_tokens":
            self.taken.append(arguments[0])
            return timedelta(0)
        assert name == "block_provider"
        self.blocked.append((arguments[0], arguments[1].total_seconds()))
        return None


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
async def double() -> AsyncIterator[ProviderDouble]:
    async with ProviderDouble() as running:
        yield running


@pytest.fixture
def setup(bucket: Bucket, double: ProviderDouble) -> Callable[..., Setup]:
    """Make a set-up against the double."""

    def make(*, failed_share: float = 0.5, max_pages: int = 10, **options: Any) -> Setup:
        limits = Limits(cast(Database, bucket), random.Random(1))
        bounds = Bounds(max_pages, 100_000, failed_share)
        return Setup("llx-test", limits, bounds, **{"base_url": double.url, **options})

    return make


async def probe_both_ways(parser: object, double: ProviderDouble) -> None:
    """Probe a service that takes the key and then refuses it: it is asked for projects, with the key."""
    double.on("GET", "/api/v1/projects", Reply(body=[]), Reply(401))
    assert isinstance(parser, Probed)
    async with httpx.AsyncClient() as http:
        await parser.probe(http)
        with pytest.raises(Misconfigured) as caught:
            await parser.probe(http)
    assert caught.value.code == "key_refused"
    assert all(request.headers["authorization"].startswith("Bearer ") for request in double.requests)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """A file whose name is the tenant's own business."""
    path = tmp_path / "17-3"
    path.write_bytes(b"%PDF-1.7 the bytes")
    return Source(path, "0b5e/secret plans.pdf", path.stat().st_size, b"\1" * 32, PDF)
