from collections.abc import Iterator

import pytest
from kserve_peer import Peer, serving


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as found:
        yield found


@pytest.fixture
def service(peer: Peer) -> Iterator["object"]:
    from api_service import Settings, running

    with running(Settings([peer.url])) as found:
        yield found
