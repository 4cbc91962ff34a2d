"""The response cache: equal prompts get the answer that is kept, or share one request.

A prompt is looked up before the contexts of the hooks open, so that they know. What is found is
replayed; what is not becomes a request that equal ones, made meanwhile with the same key, ride
along with. It runs in a task of its own, and as long as it has a rider.
"""

from __future__ import annotations

import asyncio
import copy
import hmac
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary

from datasette.utils.sqlite import sqlite3
from llm.parts import StreamEvent

from .. import instance
from ..events import FinishReason, RequestFinished, Saved, saved
from ..log import cache_store
from ..log.cache_store import Answer, Place
from ..log.recorder import Recorder
from ..log.rows import OVERHEAD_BYTES, weighed
from ..loop_end import take_ended
from ..redaction import Keys
from ..structured import Outline
from .cache_key import UncacheableError, canonical, digest
from .cache_lookups import Accepts, Lookups, is_usable
from .cache_mode import CacheMode
from .response import PromptResponse
from .shared_request import Rider, SharedRequest, copied

if TYPE_CHECKING:
    from ..access.call_policy import CachePolicy
    from .route import Route

# Larger requests are written down in a thread.
MAX_INLINE_BYTES = 50_000
# Of answers that wait to be written; more are not kept.
MAX_WAITING_BYTES = 32_000_000

# What of a response a provider sets, and is kept.
_ATTRIBUTES = ("input_tokens", "output_tokens", "token_details", "response_json", "resolved_model")

# What the row of the call that has paid for an answer has already.
_OF_OTHER_CALL: Mapping[str, Any] = dict.fromkeys(
    ("response_id", "request_id", "gateway_call_id", "gateway_model_id", "gateway_cost_dollars")
)


class Cache:
    """The response cache of a Datasette instance: what is on its way, out and in.

    Attributes:
        unwritten: answers that wait to be written, by the digest of their request; what writes
            them keeps them alive.
        guard: what writes to the tables.
    """

    def __init__(self) -> None:
        self.unwritten: WeakValueDictionary[bytes, Answer] = WeakValueDictionary()
        self._shared: dict[asyncio.AbstractEventLoop, dict[bytes, SharedRequest]] = {}
        self.guard = cache_store.Guard()
        self._lookups: WeakKeyDictionary[asyncio.AbstractEventLoop, Lookups] = WeakKeyDictionary()
        self._is_closed = False
        self._secret = os.urandom(32)
        self._waiting_bytes = 0

    def lookups(self) -> Lookups | None:
        """Those of the running event loop; None after `close()`."""
        loop = asyncio.get_running_loop()
        if loop not in self._lookups and not self._is_closed:
            for left in take_ended(self._lookups):
                left.close()
            self._lookups[loop] = Lookups()
        return self._lookups.get(loop)

    def close(self) -> None:
        """End the reads, for good: the internal database is about to be closed."""
        self._is_closed = True
        while self._lookups:
            self._lookups.popitem()[1].close()

    def shared(self) -> dict[bytes, SharedRequest]:
        """What equal requests of the running event loop may ride along with, by their digest."""
        loop = asyncio.get_running_loop()
        if loop not in self._shared:
            take_ended(self._shared)
            self._shared[loop] = {}
        return self._shared[loop]

    def identity(self, key: str | None) -> bytes:
        """What two equal keys have in common, and from which no key can be computed."""
        return hmac.digest(self._secret, (key or "").encode(errors="surrogatepass"), "sha256")

    def keep(
        self, datasette: Any, place: Place, answer: Answer, form: str, accepts: Accepts | None
    ) -> None:
        """Have an answer written, soon, if its text is accepted."""
        size = sum(len(each.chunk) for each in answer.events)
        if size > min(cache_store.MAX_ANSWER_BYTES, place.max_bytes):
            cache_store.note_too_large(place.model_id, size)
            return
        weight = size + len(form) + OVERHEAD_BYTES * (1 + len(answer.events))
        writer = Recorder.of(datasette).writer
        if writer.failure is not None or self._waiting_bytes + weight > MAX_WAITING_BYTES:
            return
        self._waiting_bytes += weight
        self.unwritten[place.digest] = answer
        work = partial(cache_store.keep, place=place, answer=answer, form=form)
        tried = False

        def write(connection: sqlite3.Connection) -> None:
            # Once, whatever comes of the transaction; it holds on to the answer until the commit.
            nonlocal tried
            if not tried:
                tried = True
                self._waiting_bytes -= weight
                if is_usable(answer, accepts):  # else an older one is of more use
                    self.guard.write(work, connection)

        if not writer.later(write):
            self._waiting_bytes -= weight


class Request(NamedTuple):
    """What an answer is kept for.

    Attributes:
        write: gives its canonical form; reads the files of attachments.
        has_files: whether there are any, its history included.
        in_thread: whether writing it down takes long.
        accepts: says in a thread whether the text of an answer is of use; None if any is.
    """

    write: Callable[[], str]
    has_files: bool
    in_thread: bool
    accepts: Accepts | None

    @classmethod
    def of(cls, route: Route, policy: CachePolicy, response: PromptResponse) -> Request:
        """The request of a response.

        Raises:
            UncacheableError: it is for an actor without an id.
        """
        prompt, conversation = response.prompt, response.conversation
        turns = tuple(conversation.responses) if conversation is not None else ()
        write = partial(
            canonical,
            prompt,
            route.model,
            stream=response.stream,
            scope=_scope(route, policy),
            turns=turns,
        )
        size, in_files = weighed(prompt)
        has_files = in_files or any(weighed(turn.prompt)[1] for turn in turns)
        # llm finds out the type of an attachment without one from its bytes.
        untyped = not all(each.type for each in prompt.attachments)
        in_thread = has_files or untyped or size > MAX_INLINE_BYTES
        return cls(
            write, has_files, in_thread, None if policy.any_answer else _accepts_of(response)
        )

    async def form(self) -> str:
        """Its canonical form.

        Raises:
            UncacheableError: it has none.
        """
        if self.in_thread:
            return await asyncio.to_thread(self.write)
        return self.write()


class CachedPrompt:
    """A prompt whose answer may be kept.

    Attributes:
        hit: the answer that is kept for it, or None.
        saved: of an answer that was not paid for what it would have taken; None before it is there.
    """

    def __init__(self, route: Route, policy: CachePolicy, request: Request, form: str) -> None:
        self.hit: Answer | None = None
        self.saved: Saved | None = None
        self._route = route
        self._policy = policy
        self._request = request
        self._is_same = True
        self._form = form
        self._digest = digest(form)
        self._cache = instance.of(route.datasette, Cache)
        self._shared = self._cache.shared()
        # One that ends before the contexts are open has the answer, which may not be kept yet.
        self._seen = self._shared.get(self._digest)

    @classmethod
    async def of(
        cls, route: Route, response: PromptResponse, mode: CacheMode
    ) -> CachedPrompt | None:
        """Look a prompt up.

        Args:
            route: its model's.
            response: has its llm prompt.
            mode: whether the cache is to be used.

        Returns:
            None where no answer is kept for it.
        """
        policy = route.target.call_policy.cache
        if policy is None or mode is False:
            return None
        try:
            request = Request.of(route, policy, response)
            prompt = cls(route, policy, request, await request.form())
        except UncacheableError:
            return None
        if mode is True:
            await prompt._look_up()
        return prompt

    async def share(
        self, rider: Rider, key: str | None, failed: SharedRequest | None = None
    ) -> SharedRequest:
        """Ride along with the request that equal prompts share.

        Args:
            rider: who is to get its events.
            key: its key, or None.
            failed: what it has ridden along with before, or None. All of its riders share the
                next one, though their pauses differ and it may be over when the last one ends.

        Returns:
            The request; one that is not ready is for the rider to begin.
        """
        if failed is None:
            seen, self._seen = self._seen, None
            return await self._share(rider, key, seen)
        request = await self._share(rider, key, failed.retry)
        if request is not failed:  # which goes on without a rider that had waited too long
            failed.retry = request
        return request

    async def _share(
        self, rider: Rider, key: str | None, seen: SharedRequest | None
    ) -> SharedRequest:
        identity, shared = self._cache.identity(key), self._shared
        while True:
            found = seen if seen is not None and seen.usable else shared.get(self._digest)
            if found is None or found.identity != identity:
                break
            await found.ready.wait()
            if found.usable:
                found.riders.append(rider)
                return found
            seen = None
        forget = partial(shared.pop, self._digest, None) if found is None else _nothing
        made = SharedRequest(identity, forget)
        if found is None:
            shared[self._digest] = made
        made.riders.append(rider)
        return made

    async def replay(self, rider: Rider) -> AsyncGenerator[StreamEvent, None]:
        """The events of the answer that is kept, then what its provider had set."""
        hit = self.hit
        assert hit is not None
        for event in hit.events:
            yield event
        vars(rider.response).update(hit.attributes)
        self._note_saved(rider, hit.call_id, hit.gateway_cost_dollars, hit.duration_s)

    def ride(self, rider: Rider, shared: SharedRequest) -> AsyncGenerator[str | StreamEvent, None]:
        """The events of a request, then what its provider has set."""

        def unpaid() -> None:
            if shared.payer_id is not None:
                self._note_saved(rider, shared.payer_id, None, shared.duration_s)

        return shared.follow(rider, unpaid)

    def noted(self, finished: RequestFinished) -> RequestFinished:
        """How a request ended: one that another call has paid for has none of that call's ids."""
        found = self.saved
        if found is None and self.hit is not None:  # which was not read to its end
            found = Saved(self.hit.call_id)
        if found is None:
            return finished
        if found.gateway_cost_dollars is None:  # of a request that was shared
            found = found._replace(gateway_cost_dollars=finished.gateway_cost_dollars)
        return finished._replace(saved=found, **_OF_OTHER_CALL)

    async def is_asked_by(self, response: PromptResponse) -> bool:
        """Whether a response still asks what was looked up: hooks may change its prompt."""
        try:
            return await Request.of(self._route, self._policy, response).form() == self._form
        except UncacheableError:
            return False

    async def check_files(self) -> None:
        """See whether attachments still are what was looked up: another answer is not kept."""
        if self._request.has_files:
            try:
                self._is_same = await self._request.form() == self._form
            except UncacheableError:
                self._is_same = False

    def keep(self, response: PromptResponse, finished: RequestFinished, keys: Keys) -> None:
        """Keep an answer that was paid for, if it is whole, and no more than text.

        Args:
            response: complete.
            finished: how its request ended.
            keys: what must not be kept.
        """
        events, policy = response.events_so_far, self._policy
        whole = response.finish_reason in (None, FinishReason.STOP)
        plain = all(each.type in ("text", "reasoning") for each in events)
        if not (whole and plain and self._is_same) or response.tool_calls_or_raise():
            return
        given = {name: getattr(response, name) for name in _ATTRIBUTES}
        attributes = {name: copied(each, copy.deepcopy) for name, each in given.items()}
        answer = Answer(
            finished.id,
            events,
            attributes,
            finished.gateway_cost_dollars,
            finished.duration_s,
            cache_store.now_ms(),
            keys,
        )
        route = self._route
        place = Place(
            self._digest, policy.setting, route.purpose, route.model.model_id, policy.max_bytes
        )
        self._cache.keep(route.datasette, place, answer, self._form, self._request.accepts)

    def _note_saved(
        self, rider: Rider, call_id: str, cost: float | None, duration_s: float | None
    ) -> None:
        """Have an answer that another call has paid for take no tokens: they become details."""
        response = rider.response
        self.saved = saved(call_id, response, cost, duration_s)
        tokens = {"input": response.input_tokens, "output": response.output_tokens}
        details = {**tokens, "details": response.token_details}
        response.set_usage(input=0, output=0, details={"cached_response": details})
        rider.unpaid()

    def _is_usable(self, unwritten: Answer) -> bool:
        # What is not going to be kept is none, either.
        is_kept = cache_store.encoded(unwritten, self._form) is not None
        return is_kept and is_usable(unwritten, self._request.accepts)

    async def _look_up(self) -> None:
        writer = Recorder.of(self._route.datasette).writer
        if writer.failure is not None:
            return  # the call could not be recorded
        unwritten = self._cache.unwritten.get(self._digest)
        if unwritten is not None and await asyncio.to_thread(self._is_usable, unwritten):
            self.hit = copy.deepcopy(unwritten)  # its caller has the original
            return
        lookups = self._cache.lookups()
        if lookups is None:
            return
        database = self._route.datasette.get_internal_database()
        wanted = (self._digest, self._policy.keep_days, self._request.accepts)
        self.hit, is_old = await lookups.find(database, *wanted)
        if is_old:
            touch = partial(cache_store.touch, digest=self._digest)
            writer.later(partial(self._cache.guard.write, touch), may_wait=True)


def _scope(route: Route, policy: CachePolicy) -> Mapping[str, str | None]:
    # Of an enum, or marked as safe for HTML, it is the same one.
    purpose = None if route.purpose is None else str.__str__(route.purpose)
    if not policy.of_actor:
        return {"purpose": purpose}
    actor = route.actor
    actor_id = actor.get("id") if isinstance(actor, Mapping) else None
    if actor is not None and not isinstance(actor_id, str | int):
        raise UncacheableError("The actor has no id")
    return {"purpose": purpose, "actor": None if actor is None else repr(actor_id)}


def _accepts_of(response: PromptResponse) -> Accepts:
    """What the text of a kept answer has to pass: one that was of no use is asked for again."""
    schema = response.prompt.schema
    if schema is None or response.answer is not None:  # structured() has it repaired
        return _has_text
    return Outline.of(schema).fits


def _has_text(text: str) -> bool:
    return bool(text) and not text.isspace()


def _nothing() -> None:
    """No one rides along with a request of another key."""
