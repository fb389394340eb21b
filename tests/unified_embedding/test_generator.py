"""The asyncio load generators, against services in the same process."""

import asyncio

import pytest

pytest.importorskip("hdrh", reason="the extra `load` is not installed")
pytest.importorskip("tritonclient.grpc", reason="the extra `client` is not installed")

from unified_embedding.errors import ServerError
from unified_embedding.measure.arrivals import RateProfile
from unified_embedding.measure.generator import closed_loop, open_loop


def test_every_caller_sends_at_least_one_request() -> None:
    async def request() -> int:
        return 2

    recorder = asyncio.run(closed_loop(request, users=3, seconds=0.0))
    assert (recorder.completed, recorder.images) == (3, 6)


def test_a_caller_has_one_request_on_its_way() -> None:
    waiting, most = 0, 0

    async def request() -> int:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)
        await asyncio.sleep(0.002)
        waiting -= 1
        return 1

    recorder = asyncio.run(closed_loop(request, users=4, seconds=0.05))
    assert most == 4
    assert recorder.completed >= 4
    assert waiting == 0


def test_arrivals_do_not_wait_for_answers_and_drops_are_counted() -> None:
    async def run() -> None:
        answer = asyncio.Event()

        async def request() -> int:
            await answer.wait()
            return 1

        profile = RateProfile.parse("400")
        asyncio.get_running_loop().call_later(3.0, answer.set)
        recorder = await open_loop(request, profile, seconds=0.2, seed=1, max_inflight=10)
        # Answers come after the last arrival: ten are on their way, the others are dropped.
        assert recorder.completed + recorder.dropped == recorder.offered
        assert recorder.completed >= 10
        assert recorder.dropped > 0
        again = await open_loop(request, profile, seconds=0.2, seed=1)
        assert again.offered == recorder.offered
        assert again.dropped == 0

    asyncio.run(run())


def test_failures_are_recorded_by_code() -> None:
    async def request() -> int:
        raise ServerError("broken")

    recorder = asyncio.run(closed_loop(request, users=2, seconds=0.0))
    assert recorder.failed == 2
    assert recorder.images == 0
