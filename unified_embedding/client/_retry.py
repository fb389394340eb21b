"""When a call is made again: while the server is away, and once after it died over a request."""

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from unified_embedding.client._calls import Deadline
from unified_embedding.errors import RequestAborted, ServerDied, ServerUnavailable

# A server that is looked after notices a dead model within 5 s and is back within 20.
ILL_S: Final = 30.0


@dataclass(frozen=True)
class Retry:
    """How long a call is repeated while the server cannot be reached or is not ready.

    A server that has answered this client before is waited for until the call's deadline: it is
    probably being restarted. One that has never answered is probably not there, and is given up
    after `contact` seconds. The pause before attempt k + 1 is drawn from
    [0.5, 1] x min(longest, first x 2^(k - 1)).

    Attributes:
        attempts: most attempts of one call; None for as many as the deadline allows, 1 never
            repeats.
        contact: seconds to wait for the first answer of all, the call's deadline permitting.
        first: seconds before the second attempt.
        longest: most seconds between two attempts.
    """

    attempts: int | None = None
    contact: float = 2.0
    first: float = 0.1
    longest: float = 2.0

    def __post_init__(self) -> None:
        wrong = self.attempts is not None and self.attempts < 1
        if wrong or self.contact < 0 or not 0 <= self.first <= self.longest:
            raise ValueError(
                f"{self} needs attempts >= 1 or None, contact >= 0 and 0 <= first <= longest"
            )

    def pause(self, attempt: int) -> float:
        """Seconds to wait after failed `attempt`, counted from 1."""
        # Beyond 2^60 nothing grows any more, and beyond 2^1023 it would not be a float.
        return min(self.longest, self.first * 2.0 ** min(attempt - 1, 60)) * random.uniform(0.5, 1)


@dataclass(frozen=True)
class Sent:
    """What was known of the server when a call was sent.

    Attributes:
        life: which of its processes it was.
        over: that process was gone.
        ill: a model's process had died, and nobody had seen the server go since.
    """

    life: int
    over: bool = False
    ill: bool = False

    @property
    def well(self) -> bool:
        """Nothing was wrong with the process."""
        return not self.over and not self.ill


class Lives:
    """The server's processes as one client can tell them apart: the first answer after a loss
    begins a new life. Safe to use from many threads.
    """

    def __init__(self) -> None:
        self._now = Sent(life=0, over=True)
        self._ill_until = 0.0
        self._lock = threading.Lock()

    @property
    def met(self) -> bool:
        """Whether the server has ever answered."""
        return self._now.life > 0

    @property
    def ill(self) -> bool:
        """Whether a model's process was found dead a short while ago.

        A server that is looked after is about to be restarted then, whatever it says.
        """
        return self._now.ill and time.monotonic() < self._ill_until

    @property
    def doubtful(self) -> bool:
        """Whether it was found ill some time ago, and its end was never seen.

        It may have been restarted between two calls, or behind a gateway, or still be ill.
        """
        return self._now.ill and not self._now.over and not self.ill

    def healed(self) -> None:
        """A doubtful server embeds pictures again: that is another life."""
        with self._lock:
            if self.doubtful:
                self._now = Sent(self._now.life + 1)

    def sent(self) -> Sent:
        """What is known now, for a call that is about to be sent."""
        return self._now

    def answered(self, sent: Sent) -> None:
        """The call was answered. Only one that was sent after a loss proves that it is over."""
        with self._lock:
            if self._now.over and sent.over and sent.life == self._now.life:
                self._now = Sent(sent.life + 1)

    def fell_ill(self, sent: Sent) -> None:
        """The call was answered that a model's process is dead."""
        with self._lock:
            if sent.life == self._now.life:
                self._now = replace(self._now, ill=True)
                self._ill_until = time.monotonic() + ILL_S

    def lost(self, sent: Sent) -> None:
        """The call found the server gone."""
        with self._lock:
            if sent.life == self._now.life:
                self._now = replace(self._now, over=True)


class Attempts:
    """The attempts of one call: after each failure the pause before the next, or the end.

    Attributes:
        death: the first death of the server that the request was in flight at. From then on it
            is a suspect: it is sent alone, and only to a server that says that it is ready.
    """

    def __init__(
        self,
        retry: Retry,
        lives: Lives,
        deadline: Deadline,
        rows: Sequence[int] = (),
        death: ServerDied | None = None,
        divisible: bool = False,
    ) -> None:
        """Begin.

        Args:
            retry: how often, and how long.
            lives: what the client knows of the server.
            deadline: the call's.
            rows: the pictures of the request, by their place in the caller's list; none for a
                call that no picture can turn into a danger.
            death: a death that they were in flight at before, together with others.
            divisible: the caller divides the request after a death, instead of repeating it.
        """
        self.death = death
        self._retry, self._lives, self._deadline = retry, lives, deadline
        self._rows, self._divisible = tuple(rows), divisible
        self._made = 0
        self._began = time.monotonic()

    def pause(self, problem: ServerUnavailable) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            ServerUnavailable: there is none.
            RequestAborted: another process had died over the request before.
        """
        if isinstance(problem, ServerDied) and self._rows:
            self._count(problem)
        self._made += 1
        pause, left = self._retry.pause(self._made), self._deadline.left
        if not self._lives.met:
            left = min(left, self._began + self._retry.contact - time.monotonic())
        if self._made == self._retry.attempts or pause >= left:
            raise problem
        return pause

    def _count(self, death: ServerDied) -> None:
        if self._divisible:
            raise death
        if self.death is None:
            self.death = death
        # One that was ill already, or gone, did not die of this.
        elif death.was_well:
            raise RequestAborted(_verdict(self._rows, death), self._rows) from death


def _verdict(rows: Sequence[int], death: ServerDied) -> str:
    if len(rows) == 1:
        return f"the server died twice while it had this picture, which is not sent again ({death})"
    return (
        f"the server died twice while it had the images {rows[0]} to {rows[-1]}, one of which may "
        f"be the cause; they are not sent again, embed_each finds out which ({death})"
    )
