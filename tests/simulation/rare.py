"""Scenarios that hypothesis generates too seldom; they run each time."""

from __future__ import annotations

from .scenarios import Block, Fallback, Hook, Interaction, Policy, Reader, Scenario, Script

RARE = {
    "an unread failure in a group": Scenario(
        (Interaction("prompt", (Script(("chunk", "pause", "fail runtime")),)),), group=Block()
    ),
    "a reader who leaves an answer that hangs": Scenario(
        (Interaction("prompt", (Script(("chunk", "hang")),), (Reader("for", stops_after=1),)),)
    ),
    "a reader of a chain who does not read the step that fails": Scenario(
        (
            Interaction("prompt", (Script(("chunk",)),), late=True),
            Interaction(
                "chain",
                (Script(("chunk", "fail runtime")), Script(("chunk",))),
                (Reader("for", stops_after=1, closes=False), Reader("unread", slow=True)),
                tools=("sync",),
            ),
        ),
        group=Block(),
        choices=b"\x10",
    ),
    "a provider that swallows a cancellation and goes on": Scenario(
        (
            Interaction(
                "prompt", (Script(("chunk", "stubborn", "chunk", "chunk")),), (Reader("text"),)
            ),
        ),
        choices=b"\x0e",
        cancels=1,
    ),
    "two contexts that together take longer than one may": Scenario(
        (Interaction("prompt", (Script(("hang",)),)),),
        hooks=(Hook(cleanup="slow"), Hook(cleanup="slow")),
        choices=b"\6",
        cancels=1,
    ),
    "a callback that fails while the chain's reader goes on": Scenario(
        (Interaction("chain", (Script(()), Script(())), (Reader("text"),), tools=("sync",)),),
        hooks=(Hook(accountant=True), Hook(after="waits", callback="raises")),
    ),
    "a limit that strikes while the last step still fails": Scenario(
        (
            Interaction(
                "chain",
                (Script(()), Script(("fail runtime",))),
                (Reader("text"), Reader("unread")),
                tools=("sync",),
                limit=2,
            ),
        )
    ),
    "a filter that swallows that the call was stopped": Scenario(
        (Interaction("prompt", (Script(("pause", "fail runtime")),)),),
        choices=b"\0\6",
        cancels=1,
        policy=Policy(fallbacks=(Fallback("stubborn"),)),
    ),
    "a filter that swallows the end of the time": Scenario(
        (Interaction("prompt", (Script(("pause", "fail runtime")),)),),
        choices=b"\0\4",
        policy=Policy(timeout_s=0.3, fallbacks=(Fallback("stubborn"),)),
    ),
    "a provider that swallows the end of its time": Scenario(
        (
            Interaction(
                "prompt", (Script(("chunk", "stubborn", "chunk", "chunk")),), (Reader("text"),)
            ),
        ),
        choices=b"\4",
        policy=Policy(idle_timeout_s=0.2),
    ),
    "events that come just in time": Scenario(
        (
            Interaction(
                "prompt", (Script(("chunk", "pause", "chunk", "pause")),), (Reader("text"),)
            ),
        ),
        choices=b"\5\0\4",
        policy=Policy(idle_timeout_s=0.2),
    ),
    "a prompt from inside a provider that takes one at a time": Scenario(
        (Interaction("prompt", (Script(("nested", "chunk")),), (Reader("text"),)),),
        policy=Policy(limit=1, purpose_limit=1),
    ),
    "callers at a limit while others wait before a retry": Scenario(
        (
            Interaction("prompt", (Script(("fail busy-3",)), Script(("pause", "chunk")))),
            Interaction("prompt", (Script(("pause", "fail connection")), Script(("chunk",)))),
            Interaction("prompt", (Script(("pause", "chunk")),)),
        ),
        choices=b"\0\4\0\6\4\0",
        cancels=1,
        policy=Policy(retries=1, limit=1, fallbacks=(Fallback("second", limit=1),)),
    ),
    "a wait for the call log that takes longer than a prompt may": Scenario(
        (Interaction("prompt", (Script(("chunk",)),)),),
        choices=b"\4\0",
        slow_commits=True,
        policy=Policy(timeout_s=0.3),
    ),
    "a callback that takes longer than a prompt may": Scenario(
        (Interaction("prompt", (Script(("chunk",)),), (Reader("text"),)),),
        hooks=(Hook(callback="waits"),),
        choices=b"\4\4",
        policy=Policy(timeout_s=0.3, idle_timeout_s=0.2),
    ),
    "a fallback that fails after its first event": Scenario(
        (Interaction("prompt", (Script(("fail runtime",)),), (Reader("text"),)),),
        policy=Policy(
            fallbacks=(Fallback("second", (Script(("chunk", "fail runtime")),)), Fallback("third"))
        ),
    ),
    "a fallback that hangs when half of the time is over": Scenario(
        (Interaction("prompt", (Script(("pause", "fail runtime")),)),),
        choices=b"\5\0",
        policy=Policy(timeout_s=1.0, fallbacks=(Fallback("second", (Script(("hang",)),)),)),
    ),
    "a pause that is longer than the time that is left": Scenario(
        (Interaction("prompt", (Script(("fail connection",)), Script(("chunk",)))),),
        policy=Policy(retries=1, timeout_s=0.3),
    ),
    "a wait for a request that does not end": Scenario(
        (
            Interaction("prompt", (Script(("stubborn", "hang")),)),
            Interaction("prompt", (Script(("chunk",)),)),
        ),
        choices=b"\4",
        policy=Policy(timeout_s=0.3, limit=1),
    ),
    "a first attempt that calls tools and fails": Scenario(
        (
            Interaction(
                "chain",
                (Script((), "raises"), Script(("chunk",))),
                (Reader("text"),),
                tools=("sync",),
            ),
        ),
        policy=Policy(fallbacks=(Fallback("second"),)),
    ),
    "a callback that fails after a provider has swallowed a cancellation": Scenario(
        (
            Interaction(
                "chain",
                (Script(("chunk", "pause", "stubborn")), Script(("chunk",))),
                (Reader("for"),),
                tools=("sync",),
            ),
        ),
        hooks=(Hook(callback="raises"),),
        choices=b"\0\6",
        cancels=1,
    ),
}
