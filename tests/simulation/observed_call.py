"""One call of a story, with all that was seen of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .facts import Request, Run, Seat
from .trace import Call, Scene


@dataclass(frozen=True)
class Seen:
    """What was seen of one call."""

    scene: Scene
    call: Call
    run: Run
    seats: list[Seat]
    requests: list[Request]

    @property
    def entered(self) -> list[Seat]:
        return [seat for seat in self.seats if seat.entered]

    @property
    def last_requests(self) -> list[Request]:
        """The last attempt at each response."""
        return list({request.response.id: request for request in self.requests}.values())

    @property
    def failure(self) -> BaseException | None:
        """What the attempts at the last response ended with; see `check_error`."""
        answers = [answer for answer in self.scene.answers if answer.call is self.call]
        return answers[-1].error if answers else None

    @property
    def timed_out(self) -> bool:
        """Whether a timeout of a plugin of the story has struck."""
        return any(seat.limit is not None and seat.limit.expired() for seat in self.seats)

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop before its end."""
        stop = self.scene.stops.get(self.call)
        return stop is not None and not stop.late

    @property
    def is_chain(self) -> bool:
        return bool(self.call.result.is_chain)


def calls_of(scene: Scene) -> Iterator[Seen]:
    for run in scene.runs:
        for call in run.calls:
            seats = [seat for seat in scene.seats if seat.result is call.result]
            requests = [request for request in run.requests if request.call is call]
            yield Seen(scene, call, run, seats, requests)
