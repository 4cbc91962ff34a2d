"""What chance brings about too seldom, so that it is told each time."""

from __future__ import annotations

from .scenarios import Block, Hook, Life, Reader, Script, Spare, Story, Terms

RARE = {
    "a failure in a group that nobody reads": Story(
        (Life("prompt", (Script(("chunk", "pause", "fail runtime")),)),), group=Block()
    ),
    "a reader who leaves an answer that hangs": Story(
        (Life("prompt", (Script(("chunk", "hang")),), (Reader("for", stops_after=1),)),)
    ),
    "a reader of a chain who does not read the step that fails": Story(
        (
            Life("prompt", (Script(("chunk",)),), late=True),
            Life(
                "chain",
                (Script(("chunk", "fail runtime")), Script(("chunk",))),
                (Reader("for", stops_after=1, closes=False), Reader("unread", slow=True)),
                tools=("sync",),
            ),
        ),
        group=Block(),
        choices=b"\x10",
    ),
    "a provider that swallows a cancellation and goes on": Story(
        (Life("prompt", (Script(("chunk", "stubborn", "chunk", "chunk")),), (Reader("text"),)),),
        choices=b"\x0e",
        cancels=1,
    ),
    "two contexts that together take longer than one may": Story(
        (Life("prompt", (Script(("hang",)),)),),
        hooks=(Hook(cleanup="slow"), Hook(cleanup="slow")),
        choices=b"\6",
        cancels=1,
    ),
    "a callback that fails while the chain's reader goes on": Story(
        (Life("chain", (Script(()), Script(())), (Reader("text"),), tools=("sync",)),),
        hooks=(Hook(accountant=True), Hook(after="waits", callback="raises")),
    ),
    "a limit that strikes while the last step still fails": Story(
        (
            Life(
                "chain",
                (Script(()), Script(("fail runtime",))),
                (Reader("text"), Reader("unread")),
                tools=("sync",),
                limit=2,
            ),
        )
    ),
    "a filter that swallows that the call was stopped": Story(
        (Life("prompt", (Script(("pause", "fail runtime")),)),),
        choices=b"\0\6",
        cancels=1,
        terms=Terms(spares=(Spare("stubborn"),)),
    ),
    "a filter that swallows the end of the time": Story(
        (Life("prompt", (Script(("pause", "fail runtime")),)),),
        choices=b"\0\4",
        terms=Terms(timeout_s=0.3, spares=(Spare("stubborn"),)),
    ),
    "a provider that swallows the end of its time": Story(
        (Life("prompt", (Script(("chunk", "stubborn", "chunk", "chunk")),), (Reader("text"),)),),
        choices=b"\4",
        terms=Terms(idle_timeout_s=0.2),
    ),
    "events that come just in time": Story(
        (Life("prompt", (Script(("chunk", "pause", "chunk", "pause")),), (Reader("text"),)),),
        choices=b"\5\0\4",
        terms=Terms(idle_timeout_s=0.2),
    ),
    "a prompt from inside a provider that takes one at a time": Story(
        (Life("prompt", (Script(("nested", "chunk")),), (Reader("text"),)),),
        terms=Terms(limit=1, purpose_limit=1),
    ),
    "callers who wait for their turn while others pause before theirs": Story(
        (
            Life("prompt", (Script(("fail busy-3",)), Script(("pause", "chunk")))),
            Life("prompt", (Script(("pause", "fail connection")), Script(("chunk",)))),
            Life("prompt", (Script(("pause", "chunk")),)),
        ),
        choices=b"\0\4\0\6\4\0",
        cancels=1,
        terms=Terms(retries=1, limit=1, spares=(Spare("second", limit=1),)),
    ),
    "a wait for the record that takes longer than a prompt may": Story(
        (Life("prompt", (Script(("chunk",)),)),),
        choices=b"\4\0",
        slow_commits=True,
        terms=Terms(timeout_s=0.3),
    ),
    "a callback that takes longer than a prompt may": Story(
        (Life("prompt", (Script(("chunk",)),), (Reader("text"),)),),
        hooks=(Hook(callback="waits"),),
        choices=b"\4\4",
        terms=Terms(timeout_s=0.3, idle_timeout_s=0.2),
    ),
    "a fallback that fails after its first event": Story(
        (Life("prompt", (Script(("fail runtime",)),), (Reader("text"),)),),
        terms=Terms(spares=(Spare("second", (Script(("chunk", "fail runtime")),)), Spare("third"))),
    ),
    "a fallback that hangs when half of the time is over": Story(
        (Life("prompt", (Script(("pause", "fail runtime")),)),),
        choices=b"\5\0",
        terms=Terms(timeout_s=1.0, spares=(Spare("second", (Script(("hang",)),)),)),
    ),
    "a pause that is longer than the time that is left": Story(
        (Life("prompt", (Script(("fail connection",)), Script(("chunk",)))),),
        terms=Terms(retries=1, timeout_s=0.3),
    ),
    "a wait for somebody who does not leave": Story(
        (
            Life("prompt", (Script(("stubborn", "hang")),)),
            Life("prompt", (Script(("chunk",)),)),
        ),
        choices=b"\4",
        terms=Terms(timeout_s=0.3, limit=1),
    ),
    "a first attempt that calls tools and fails": Story(
        (
            Life(
                "chain",
                (Script((), "raises"), Script(("chunk",))),
                (Reader("text"),),
                tools=("sync",),
            ),
        ),
        terms=Terms(spares=(Spare("second"),)),
    ),
    "a callback that fails after a provider has swallowed a cancellation": Story(
        (
            Life(
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
