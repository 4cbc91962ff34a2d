"""Sixty days of calls in the demo's log: written by the library itself, with scripted models."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .. import instance
from ..errors import ModelNotAllowedError
from ..facade import LLM
from ..log.recorder import Recorder
from ..testing import registered
from .demo_data import BERTHS, SHIPS, pick
from .demo_recorder import PastRecorder, Reply, Scene, SceneModel, current_scene

if TYPE_CHECKING:
    from datasette.app import Datasette

    from ..calls.model import WrappedAsyncModel

T = TypeVar("T")

DAYS = 60
QUESTIONS = "harbour"
TRANSLATIONS = "translations"
SUMMARIES = "summaries"
MANIFESTS = "manifests"
PLANNING = "planning"
LARGE = "gpt-4.1"
# Answers questions.
COMMON = "gpt-4.1-mini"

_SEED = 1880
_COUNT = "select count(*) from llm_calls"
# So many scenes at once: their rows share transactions.
_AT_ONCE = 96
_CHEAP, _CAREFUL = "gpt-4o-mini", "gpt-5-mini"
# None of these is installed with the demo; the last has no public price.
_REMOTE, _LOCAL = "anthropic/claude-haiku-4-5", "quay-7b"
_BLOCKED = "gpt-4-turbo"
# Until the common one replaced it, so many days ago.
_FORMER, _REPLACED_DAYS = "gpt-4o", 21
_MODELS = (_CHEAP, COMMON, LARGE, _CAREFUL, _REMOTE, _LOCAL, _FORMER)
_DESKS = ("harbour-office", "harbour-office", "pilot-desk", "customs", "root")
_TABLES = ("arrivals", "arrivals", "ships", "berths")
_LANGUAGES = ("Norwegian", "Icelandic", "Dutch", "German")
# The hours of a working day, each as often as its share; in UTC.
_HOURS = (5, 6, 7, 7, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 11, 11, 12, 13, 13, 13, 14, 14, 15, 16, 20)
_WEEK = (1.15, 1.1, 1.0, 1.05, 0.95, 0.4, 0.3)
_TODAY = timedelta(days=1)
_OUTAGE = timedelta(hours=14, minutes=10)

_ASKED = (
    "How long did {ship} stay at {berth} last month?",
    "Which ships waited for {berth} this week?",
    "Is {berth} deep enough for {ship} at low water?",
    "What does {ship} owe for its last call?",
    "When is {berth} free for a ship of 120 metres?",
    "Which cargo does {ship} usually bring?",
)
ANSWERED = (
    "**{ship}** called at {berth} three times. The longest stay was 38 hours, in fog.",
    "{berth} is free from *14:00*.\n\n1. {ship} leaves at 12:30\n2. The tug is ready at 13:00",
    "The table has no arrival of {ship} at {berth} in that time. Its last one was in spring.",
    "For {ship} the fee was 842.50, of which\n\n- 512.00 are for its length\n- 330.50 for cargo",
)
_NEXT_ASKED = (
    "And the month before?",
    "Which of them were late?",
    "Put that into a short note for the pilots.",
    "Are you sure about the tonnes?",
)


_SYSTEM = "You answer the questions of a small harbour, briefly, from its tables."
_REPORT = """## Yesterday

| | |
| --- | --- |
| arrivals | 7 |
| late | 2, both in fog |

*North Quay 2* was shifted twice. **Tank Jetty** is closed until noon."""
_MANIFEST = {
    "type": "object",
    "properties": {"cargo": {"type": "string"}, "tonnes": {"type": "number"}},
}
# So many manifests are read at once.
_LIMIT = 4
# How the site is configured that has these calls.
SETTINGS: dict[str, Any] = {
    "blocked_models": [_BLOCKED],
    "log": {"content": True},
    "purposes": {
        QUESTIONS: {},
        TRANSLATIONS: {"model": "echo", "log": {"content": False}},
        SUMMARIES: {"model": LARGE},
        MANIFESTS: {"model": _CAREFUL, "max_concurrency": _LIMIT, "log": {"content": False}},
        PLANNING: {"model": LARGE},
    },
}


class _Play(NamedTuple):
    """A scene that is to be played.

    Attributes:
        at: when it begins.
        act: what happens.
    """

    at: datetime
    act: _Act


@dataclass(frozen=True, slots=True)
class _Stage:
    """What an act needs.

    Attributes:
        llm: the models of the site.
        scene: its scene.
        old: whether it is before the day on which a model was replaced.
    """

    llm: LLM
    scene: Scene
    old: bool

    def pick(self, values: Sequence[T]) -> T:
        """One of several values."""
        return pick(self.scene.random, values)

    def between(self, low: float, high: float) -> float:
        """A number from a range, more often one near its low end."""
        return float(low + (high - low) * self.scene.random.random() ** 2)

    def text(self, texts: Sequence[str]) -> str:
        """One of several texts, about a ship and a berth."""
        return self.pick(texts).format(ship=self.pick(SHIPS), berth=self.pick(BERTHS)[0])

    def actor(self) -> dict[str, str]:
        """Who asks."""
        return {"id": self.pick(_DESKS)}

    def reply(self, text: str, input_tokens: int, output_tokens: int, **more: Any) -> None:
        """Have the next model that is asked give an answer, at the pace of a model."""
        tokens = int(self.between(0.8 * output_tokens, 1.6 * output_tokens))
        first_s = self.between(0.25, 1.4)
        self.scene.replies.append(
            Reply(
                text,
                int(self.between(0.8 * input_tokens, 1.5 * input_tokens)),
                tokens,
                first_s,
                first_s + tokens / self.between(40, 110),
                **more,
            )
        )

    def fail(self, error: Exception, pause_s: float = 0.0) -> None:
        """Have the next model that is asked fail."""
        self.scene.replies.append(Reply(error=error, seconds=self.between(0.2, 3), pause_s=pause_s))

    async def common(self) -> WrappedAsyncModel:
        """The model that answers questions at this time."""
        model_id, tags = _FORMER if self.old else COMMON, {"table": self.pick(_TABLES)}
        return await self.llm.model(model_id, QUESTIONS, self.actor(), tags=tags)


class DemoError(Exception):
    """What a scripted model fails with; it has what a provider's exceptions have."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status_code = status
        self.headers = {"retry-after-ms": "1"}  # so that nothing is waited for


_Act = Callable[[_Stage], Awaitable[None]]


async def write_calls(datasette: Datasette, now: datetime, days: int = DAYS) -> int:
    """Fill the call log of a Datasette that is not used otherwise, and count its rows.

    Args:
        datasette: it has not been started.
        now: when the last day ends.
        days: how many days to write.
    """
    instance.of(datasette, Recorder, partial(PastRecorder, datasette))
    with registered(*map(SceneModel, _MODELS)), without_warnings():
        await datasette.invoke_startup()
        try:
            await _play_all(LLM(datasette), list(_plays(now, days)), now)
            await Recorder.of(datasette).writer.flush()
            counted = await datasette.get_internal_database().execute(_COUNT)
        finally:
            await datasette.invoke_shutdown()
    return int(counted.single_value())


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """Within it the library is quiet: scripted failures are no news."""
    logger = logging.getLogger("datasette_llm")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


async def _play_all(models: LLM, plays: list[_Play], now: datetime) -> None:
    places = asyncio.Semaphore(_AT_ONCE)
    replaced = now - timedelta(days=_REPLACED_DAYS)

    async def one(number: int, play: _Play) -> None:
        async with places:
            scene = Scene(play.at, Random(f"{_SEED} {number}"))
            scene.enter()
            await play.act(_Stage(models, scene, play.at < replaced))

    async with asyncio.TaskGroup() as tasks:
        for number, play in enumerate(plays):
            tasks.create_task(one(number, play))


def _plays(now: datetime, days: int) -> Iterator[_Play]:
    """All scenes; they depend on nothing but the time."""
    random = Random(_SEED)
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    for ago in reversed(range(days)):
        day = today - ago * _TODAY
        for play in _of_day(random, day, 1.1 - 0.005 * ago):
            if play.at < now - timedelta(minutes=5):
                yield play
    for number in range(7):
        yield _Play(today - _TODAY + _OUTAGE + timedelta(minutes=3 * number), _outage)
    yield _Play(now - timedelta(minutes=4), _question)


def _of_day(random: Random, day: datetime, growth: float) -> Iterator[_Play]:
    yield _Play(day + timedelta(hours=5), _summary)
    busy = growth * _WEEK[day.weekday()]
    for act, times in _ACTS:
        count = int(times * busy + random.random())
        for _ in range(count):
            seconds = int(random.random() * 3_600)
            yield _Play(day + timedelta(hours=pick(random, _HOURS), seconds=seconds), act)


# What happens


async def _question(stage: _Stage) -> None:
    stage.reply(stage.text(ANSWERED), 900, 90)
    await _text(await stage.common(), stage.text(_ASKED))


async def _conversation(stage: _Stage) -> None:
    conversation = (await stage.common()).conversation()
    for turn in range(stage.pick((3, 3, 4, 5))):
        stage.reply(stage.text(ANSWERED), 900 + 250 * turn, 110)
        question = stage.text(_NEXT_ASKED if turn else _ASKED)
        await (await conversation.prompt(question, system=_SYSTEM)).text()
        stage.scene.wait(stage.between(15, 120))


async def _translation(stage: _Stage) -> None:
    model = await stage.llm.model(
        _CHEAP, TRANSLATIONS, stage.actor(), tags={"language": stage.pick(_LANGUAGES)}
    )
    stage.reply("(the notice, translated)", 240, 230)
    await _text(model, "Translate this notice to mariners")


async def _summary(stage: _Stage) -> None:
    """The job of each morning."""
    model = await stage.llm.model(LARGE, SUMMARIES, tags={"job": "morning-report"})
    stage.reply(_REPORT, 65_000, 900)
    await _text(model, "Summarise yesterday's arrivals for the morning report")


async def _manifests(stage: _Stage) -> None:
    """The manifests of one ship, all at once."""
    ship, count = stage.pick(SHIPS), stage.pick((5, 6, 8, 9))

    async def read(number: int) -> None:
        place = _Stage(stage.llm, stage.scene.part(number), stage.old)
        place.scene.enter()
        place.scene.queued_s = 0.0 if number <= _LIMIT else place.between(0.5, 4)
        place.reply(json.dumps({"cargo": "timber", "tonnes": 12 * number}), 2_300, 150)
        await _text(model, f"Manifest {number} of {ship}", schema=_MANIFEST)

    group = stage.llm.group(_CAREFUL, MANIFESTS, tags={"job": "manifests", "ship": ship})
    async with group as model:
        await asyncio.gather(*map(read, range(1, count + 1)))


async def _planning(stage: _Stage) -> None:
    """A chain: the model looks into tables before it answers."""
    model = await stage.llm.model(LARGE, PLANNING, stage.actor(), tags={"table": "berths"})
    ship, berth = stage.pick(SHIPS), stage.pick(BERTHS)[0]
    stage.reply("", 1_400, 40, tools={"find_ship": {"name": ship}}, finish_reason="tool_calls")
    if stage.scene.random.random() < 0.5:
        tools = {"free_hours": {"berth": berth}}
        stage.reply("", 1_700, 40, tools=tools, finish_reason="tool_calls")
    stage.reply(f"Put **{ship}** at {berth} from 16:00; it is free until the morning.", 2_000, 120)
    chain = model.chain(f"Where can {ship} lie tonight?", system=_SYSTEM, tools=_TOOLS)
    await chain.text()


async def _hurried(stage: _Stage) -> None:
    """Asked again after a rate limit."""
    stage.fail(DemoError("Rate limit reached; please slow down", 429), stage.between(1, 8))
    await _question(stage)


async def _truncated(stage: _Stage) -> None:
    stage.reply(stage.text(ANSWERED)[:50], 900, 1_000, finish_reason="length")
    await _text(await stage.common(), f"List everything about {stage.pick(SHIPS)}")


async def _too_long(stage: _Stage) -> None:
    stage.fail(DemoError("This model's maximum context length is 128000 tokens", 400))
    await _failing(await stage.llm.model(LARGE, SUMMARIES, tags={"job": "year-report"}))


async def _given_up(stage: _Stage) -> None:
    """The page is left before the answer has ended."""
    stage.reply("Let me look at each of the 420 arrivals", 1_200, 700, hangs=True)
    asking = asyncio.create_task(_text(await stage.common(), stage.text(_ASKED)))
    await stage.scene.hanging.wait()
    asking.cancel()
    await asyncio.wait([asking])


async def _blocked(stage: _Stage) -> None:
    with contextlib.suppress(ModelNotAllowedError):
        await stage.llm.model(_BLOCKED, QUESTIONS, stage.actor())


async def _trial(stage: _Stage) -> None:
    """Other models are tried for the same purpose."""
    model_id = stage.pick((_REMOTE, _LOCAL))
    model = await stage.llm.model(model_id, QUESTIONS, {"id": "root"}, tags={"trial": model_id})
    stage.reply(stage.text(ANSWERED), 950, 130)
    await _text(model, stage.text(_ASKED))


async def _outage(stage: _Stage) -> None:
    """Every attempt fails."""
    for _ in range(3):
        message = "The server is overloaded or not ready yet"
        stage.fail(DemoError(message, 503), stage.between(0.5, 3))
    await _failing(await stage.common())


_ACTS: tuple[tuple[_Act, float], ...] = (
    (_question, 19),
    (_translation, 10),
    (_conversation, 2.6),
    (_planning, 3.5),
    (_manifests, 1.3),
    (_hurried, 0.7),
    (_trial, 0.8),
    (_truncated, 0.3),
    (_too_long, 0.25),
    (_given_up, 0.3),
    (_blocked, 0.2),
)


async def _text(model: WrappedAsyncModel, prompt: str, **more: Any) -> None:
    response = await model.prompt(prompt, system=_SYSTEM, **more)
    await response.text()


async def _failing(model: WrappedAsyncModel) -> None:
    with contextlib.suppress(DemoError):
        await _text(model, "What is expected tonight?")


async def find_ship(name: str) -> str:
    """Look up a ship by its name."""
    current_scene().wait(0.08)
    return json.dumps({"name": name, "length_m": 96, "cargo": "timber"})


async def free_hours(berth: str) -> str:
    """The hours in which a berth is free."""
    current_scene().wait(0.15)
    return json.dumps({"berth": berth, "free": ["16:00", "06:00"]})


_TOOLS = [find_ship, free_hours]
