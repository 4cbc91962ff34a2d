"""The catalog: its contents, when it is refreshed, and failures."""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import llm
import llm.plugins
import pytest
import yaml
from datasette.utils.asgi import Request

from datasette_llm import LLM, ModelNotFoundError, instance
from datasette_llm.access.snapshot import SnapshotSource, find_model, snapshot_of
from datasette_llm.console.explain import explain_page
from datasette_llm.console.overview import overview
from datasette_llm.providers import catalog
from datasette_llm.providers.catalog import CatalogSource
from datasette_llm.testing import ScriptedModel

EXTRA_MODEL = {"model_id": "local", "model_name": "local", "api_base": "http://127.0.0.1:9/v1"}


class SyncModel(llm.Model):
    """A model without an async version."""

    def __init__(self, model_id: str) -> None:
        self.model_id = model_id

    def execute(self, *args: Any, **kwargs: Any) -> Iterator[str]:
        yield "sync"


class Provider:
    """An llm plugin that provides some models, and records how it was called."""

    def __init__(self, *model_ids: str, aliases: tuple[str, ...] = ()) -> None:
        self.model_ids = list(model_ids)
        self.aliases = aliases
        self.threads: list[int] = []
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    @llm.hookimpl
    def register_models(self, register: Callable[..., None]) -> None:
        self.threads.append(threading.get_ident())
        self.asked.set()
        assert self.may_answer.wait(20), "the test never let the provider answer"
        for model_id in self.model_ids:
            register(SyncModel(model_id), ScriptedModel(model_id), aliases=self.aliases)


@pytest.fixture
def llm_plugin() -> Iterator[Callable[..., Any]]:
    """A function that registers an llm plugin until the end of the test, and returns it."""
    registered = []

    def register(implementations: Any, name: str | None = None) -> Any:
        llm.plugins.pm.register(implementations, name=name)
        registered.append(implementations)
        return implementations

    yield register
    for implementations in registered:
        if isinstance(implementations, Provider):
            implementations.may_answer.set()
        if llm.plugins.pm.is_registered(implementations):
            llm.plugins.pm.unregister(implementations)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The time that the catalog sees, which stands still until a test sets `now`."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(catalog, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def test_model_is_found_by_id_and_alias(make_datasette, llm_plugin, llm_folder: Path) -> None:
    llm_plugin(Provider("pelican-1-large", aliases=("pelican", "big")))
    (llm_folder / "aliases.json").write_text('{"mine": "pelican-1-large"}')
    models = LLM(make_datasette())

    names = ["pelican-1-large", "pelican", "big", "mine"]
    found = [(await models.model(name)).model_id for name in names]

    assert found == ["pelican-1-large"] * 4
    assert (await models.explain("mine")).model_id == "pelican-1-large"


async def test_models_are_listed_once_each(make_datasette, llm_plugin) -> None:
    llm_plugin(Provider("pelican-1", aliases=("p", "pel")))

    listed = [model.model_id for model in await LLM(make_datasette()).models()]

    assert listed.count("pelican-1") == 1
    assert not {"p", "pel"} & set(listed)


async def test_later_plugin_wins_as_in_llm(llm_plugin) -> None:
    """If two plugins provide a model, the later one counts, as in llm."""
    llm_plugin(Provider("pelican", aliases=("bird",)))
    llm_plugin(Provider("pelican", "heron", aliases=("bird",)))

    taken = await CatalogSource().current()

    theirs = llm.get_async_model_aliases()
    for name in ("pelican", "heron", "bird"):
        assert taken.canonical(name) == theirs[name].model_id
    assert [name for name in taken.entries if name in ("pelican", "heron")].count("pelican") == 1


async def test_every_llm_name_gives_the_same_model(llm_plugin) -> None:
    llm_plugin(Provider("pelican", aliases=("bird",)))

    taken = await CatalogSource().current()

    theirs = {**llm.get_model_aliases(), **llm.get_async_model_aliases()}
    assert dict(taken.names) == {name: model.model_id for name, model in theirs.items()}


async def test_the_order_is_llms(llm_plugin) -> None:
    llm_plugin(Provider("pelican", "albatross"))

    taken = await CatalogSource().current()

    theirs = dict.fromkeys(item.model.model_id for item in llm.get_models_with_aliases())
    assert list(taken.entries) == list(theirs)


class Broken:
    @llm.hookimpl
    def register_models(self, register: Callable[..., None]) -> None:
        register(SyncModel("before-the-failure"), ScriptedModel("before-the-failure"))
        raise ConnectionError("the provider is down")


async def test_failing_llm_plugin_is_a_warning(
    make_datasette, llm_plugin, caplog: pytest.LogCaptureFixture
) -> None:
    """An llm plugin that fails while listing is a warning; the others' models are listed."""
    llm_plugin(Provider("earlier"))
    llm_plugin(Broken(), name="llm-broken")
    llm_plugin(Provider("later"))

    models = LLM(make_datasette())
    listed = {model.model_id for model in await models.models()}
    with pytest.raises(ModelNotFoundError, match="'llm-broken' failed while listing"):
        await models.model("after-the-failure")  # lists them once more

    assert {"earlier", "later", "before-the-failure", "echo"} <= listed
    assert caplog.messages == [
        "llm plugin 'llm-broken' failed while listing its models: "
        "ConnectionError: the provider is down"
    ]


@pytest.mark.parametrize(
    "nonsense", [None, "pelican", SyncModel, object()], ids=["None", "text", "class", "object"]
)
async def test_invalid_registration_is_a_warning(
    make_datasette, llm_plugin, caplog: pytest.LogCaptureFixture, nonsense: object
) -> None:
    """An llm plugin that registers something else is a warning; the others' models are listed."""

    class Nonsense:
        @llm.hookimpl
        def register_models(self, register: Callable[..., None]) -> None:
            register(nonsense)

    llm_plugin(Provider("sane"))
    llm_plugin(Nonsense(), name="llm-nonsense")

    assert (await LLM(make_datasette()).model("sane")).model_id == "sane"
    assert "llm plugin 'llm-nonsense'" in caplog.text


async def later(register: Callable[..., None]) -> None:
    register(SyncModel("late"))


def in_steps(register: Callable[..., None]) -> Iterator[None]:
    yield register(SyncModel("late"))


@pytest.mark.parametrize("register_models", [later, in_steps])
async def test_e2_listing_that_is_not_run_is_told(
    make_datasette, llm_plugin, caplog: pytest.LogCaptureFixture, register_models: Any
) -> None:
    """llm runs no coroutine and no generator, so their models would be missing without a word."""

    class Late:
        pass

    Late.register_models = staticmethod(llm.hookimpl(register_models))  # type: ignore[attr-defined]
    llm_plugin(Late(), name="llm-late")

    await LLM(make_datasette()).models()
    assert "llm plugin 'llm-late' failed while listing its models: TypeError: " in caplog.text
    assert "is async or has a yield" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        b"{not json",
        b"",
        b'["a", "list"]',
        b"null",
        b'{"alias": ["unhashable"]}',
        b"\xff\xfe",
    ],
)
async def test_malformed_aliases_json_is_a_warning(
    make_datasette,
    register_models,
    llm_folder: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes,
) -> None:
    register_models(ScriptedModel("pelican"))
    (llm_folder / "aliases.json").write_bytes(content)

    model = await LLM(make_datasette()).model("pelican")

    assert model.model_id == "pelican"
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("llm's aliases.json cannot be read, so its aliases are")


async def test_repaired_aliases_json_is_read(
    make_datasette, register_models, llm_folder: Path
) -> None:
    register_models(ScriptedModel("pelican"))
    models = LLM(make_datasette())
    (llm_folder / "aliases.json").write_text("{")
    with pytest.raises(ModelNotFoundError):
        await models.model("bird")

    (llm_folder / "aliases.json").write_text('{"bird": "pelican"}')

    assert (await models.model("bird")).model_id == "pelican"


async def test_registering_a_plugin_shows_at_once(make_datasette, llm_plugin) -> None:
    models = LLM(make_datasette())
    assert "pelican" not in {model.model_id for model in await models.models()}

    provider = llm_plugin(Provider("pelican"))
    assert "pelican" in {model.model_id for model in await models.models()}
    assert (await models.model("pelican")).model_id == "pelican"

    llm.plugins.pm.unregister(provider)
    assert "pelican" not in {model.model_id for model in await models.models()}
    with pytest.raises(ModelNotFoundError):
        await models.model("pelican")


async def test_replacing_a_plugin_shows_at_once(make_datasette, llm_plugin) -> None:
    models = LLM(make_datasette())
    llm.plugins.pm.unregister(llm_plugin(Provider("old")))
    await models.models()
    old = llm_plugin(Provider("old"))
    assert (await models.model("old")).model_id == "old"

    llm.plugins.pm.unregister(old)
    del old
    llm_plugin(Provider("new"))

    assert (await models.model("new")).model_id == "new"


async def test_plugin_registered_during_refresh_is_seen(
    llm_plugin,
) -> None:
    """A plugin that is registered while a catalog is built is in the next result."""
    slow = llm_plugin(Provider("slow"))
    slow.may_answer.clear()
    source = CatalogSource()
    first_user = asyncio.create_task(source.current())
    await asyncio.to_thread(slow.asked.wait, 20)

    llm_plugin(Provider("pelican"))
    second_user = asyncio.create_task(source.current())
    await asyncio.sleep(0)
    slow.may_answer.set()

    await first_user
    assert "pelican" in (await second_user).entries


async def test_another_folder_of_llm_is_seen_at_once(
    make_datasette, register_models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_models(ScriptedModel("pelican"))
    models = LLM(make_datasette())
    await models.models()
    other = tmp_path / "other"
    other.mkdir()
    (other / "aliases.json").write_text('{"bird": "pelican"}')

    monkeypatch.setenv("LLM_USER_PATH", str(other))

    assert (await models.model("bird")).model_id == "pelican"


@pytest.mark.parametrize(
    ("file", "content", "name", "model_id"),
    [
        ("aliases.json", json.dumps({"bird": "pelican"}), "bird", "pelican"),
        ("extra-openai-models.yaml", yaml.safe_dump([EXTRA_MODEL]), "local", "local"),
    ],
)
async def test_changed_file_is_read_for_an_unknown_name(
    make_datasette,
    register_models,
    llm_folder: Path,
    clock: SimpleNamespace,
    file: str,
    content: str,
    name: str,
    model_id: str,
) -> None:
    register_models(ScriptedModel("pelican"))
    models = LLM(make_datasette())
    with pytest.raises(ModelNotFoundError):
        await models.model(name)
    assert not await models.explain(name)

    (llm_folder / file).write_text(content)

    assert (await models.model(name)).model_id == model_id
    assert await models.explain(name)


async def test_changed_file_is_read_after_a_second(
    make_datasette, register_models, llm_folder: Path, clock: SimpleNamespace
) -> None:
    aliases = llm_folder / "aliases.json"
    aliases.write_text('{"bird": "pelican"}')
    register_models(ScriptedModel("pelican"), ScriptedModel("heron"))
    models = LLM(make_datasette())
    assert (await models.model("bird")).model_id == "pelican"

    aliases.write_text('{"bird": "heron"}')
    assert (await models.model("bird")).model_id == "pelican"
    clock.now += 1.1
    assert (await models.model("bird")).model_id == "heron"

    aliases.unlink()
    clock.now += 1.1
    with pytest.raises(ModelNotFoundError):
        await models.model("bird")


async def test_unchanged_folder_causes_no_refresh(
    make_datasette, llm_plugin, clock: SimpleNamespace
) -> None:
    provider = llm_plugin(Provider("pelican"))
    models = LLM(make_datasette())
    for _ in range(10):
        await models.model("pelican")
        clock.now += 1.1

    assert len(provider.threads) == 1


async def test_e3_new_model_is_found(make_datasette, llm_plugin) -> None:
    """As after `ollama pull`, in a plugin that asks its server for its models."""
    provider = llm_plugin(Provider("pelican"))
    models = LLM(make_datasette())
    with pytest.raises(ModelNotFoundError):
        await models.model("heron")

    for new in ["heron", "stork"]:
        provider.model_ids.append(new)
        assert (await models.model(new)).model_id == new
        assert await models.explain(new)


async def test_e3_unknown_ids_share_a_look(make_datasette, llm_plugin, monkeypatch) -> None:
    monkeypatch.setattr(catalog, "LOOK_AGAIN_S", 0.3)
    looks = []

    class Timed:
        @llm.hookimpl
        def register_models(self) -> None:
            looks.append(time.monotonic())

    llm_plugin(Timed())
    models = LLM(make_datasette())
    for _ in range(3):
        answers = await asyncio.gather(*[models.explain(f"no-{n}") for n in range(100)])
        assert not any(answers)

    _, *later = looks  # the first is for any use of a model
    assert 2 <= len(later) <= 6  # some ask when a look has begun already
    assert all(after - before > 0.29 for before, after in itertools.pairwise(later))


async def test_e3_hanging_plugin_ends_the_look(make_datasette, llm_plugin, monkeypatch) -> None:
    monkeypatch.setattr(catalog, "LOOK_LIMIT_S", 0.05)
    provider = llm_plugin(Provider("pelican"))
    models = LLM(make_datasette())
    await models.model("pelican")
    provider.may_answer.clear()

    for name in ["heron", "stork"]:
        with pytest.raises(ModelNotFoundError, match="Unknown model"):
            await models.model(name)
    assert (await models.model("pelican")).model_id == "pelican"


async def test_e3_cancelled_caller_leaves_the_look(make_datasette, llm_plugin) -> None:
    """Others wait for it too."""
    provider = llm_plugin(Provider("pelican"))
    models = LLM(make_datasette())
    await models.model("pelican")
    provider.model_ids.append("heron")
    provider.may_answer.clear()
    provider.asked.clear()
    first, second = (asyncio.create_task(models.model("heron")) for _ in range(2))
    await asyncio.to_thread(provider.asked.wait)

    first.cancel()
    provider.may_answer.set()

    assert (await second).model_id == "heron"
    assert len(provider.threads) == 2


async def test_c8_registry_is_read_off_the_event_loop(make_datasette, llm_plugin) -> None:
    provider = llm_plugin(Provider("pelican"))
    uses: list[Callable[[Any], Any]] = [
        lambda models: models.model("pelican"),
        lambda models: models.models(),
        lambda models: models.explain("pelican"),
        lambda models: models.explain("unknown"),
        lambda models: models.group("pelican").__aenter__(),
        lambda models: models.datasette.invoke_startup(),
        lambda models: models.datasette.client.get("/-/secrets"),
    ]
    for use in uses:
        await use(LLM(make_datasette()))

    assert len(provider.threads) == len(uses)
    assert threading.get_ident() not in provider.threads


async def test_c8_event_loop_runs_during_slow_listing(make_datasette, llm_plugin) -> None:
    provider = llm_plugin(Provider("pelican"))
    provider.may_answer.clear()
    waiting = asyncio.create_task(LLM(make_datasette()).model("pelican"))
    await asyncio.to_thread(provider.asked.wait, 20)
    assert not waiting.done()

    provider.may_answer.set()

    assert (await waiting).model_id == "pelican"


async def test_concurrent_users_share_one_refresh(make_datasette, llm_plugin) -> None:
    provider = llm_plugin(Provider("pelican"))
    datasette = make_datasette()

    found = await asyncio.gather(*[find_model(datasette, "pelican") for _ in range(20)])

    assert len({id(entry.model) for _, entry in found}) == 1
    assert len(provider.threads) == 1


async def test_cancelled_user_keeps_the_refresh_running(make_datasette, llm_plugin) -> None:
    """A user who is cancelled does not cancel the catalog that others wait for."""
    provider = llm_plugin(Provider("pelican"))
    provider.may_answer.clear()
    models = LLM(make_datasette())
    leaves, stays = [asyncio.create_task(models.model("pelican")) for _ in range(2)]
    await asyncio.to_thread(provider.asked.wait, 20)

    leaves.cancel()
    provider.may_answer.set()

    assert (await stays).model_id == "pelican"
    with pytest.raises(asyncio.CancelledError):
        await leaves
    assert len(provider.threads) == 1


async def test_old_catalog_is_refreshed_in_background(
    make_datasette, llm_plugin, clock: SimpleNamespace
) -> None:
    """A catalog that is older than a minute is used while a new one is built."""
    provider = llm_plugin(Provider("pelican"))
    models = LLM(make_datasette())
    await models.model("pelican")
    provider.model_ids.append("heron")
    provider.asked.clear()
    provider.may_answer.clear()

    clock.now += 59
    await models.model("pelican")
    assert not provider.asked.is_set()

    clock.now += 2
    await models.model("pelican")
    await asyncio.to_thread(provider.asked.wait, 20)
    # The provider has not answered yet, and no caller waits for it.
    assert "heron" not in {model.model_id for model in await models.models()}

    provider.may_answer.set()
    await instance.of(models.datasette, SnapshotSource).catalogs.refresh()
    assert "heron" in {model.model_id for model in await models.models()}
    assert len(provider.threads) == 2


async def test_sync_model_is_known_by_every_name(
    make_datasette, llm_plugin, llm_folder: Path
) -> None:
    class SyncOnly:
        @llm.hookimpl
        def register_models(self, register: Callable[..., None]) -> None:
            register(SyncModel("old-pelican"), aliases=["old"])

    llm_plugin(SyncOnly())
    (llm_folder / "aliases.json").write_text('{"mine": "old-pelican"}')
    models = LLM(make_datasette())

    assert "old-pelican" in {model.model_id for model in await models.models()}
    for name in ("old-pelican", "old", "mine"):
        assert (await models.model(name)).model_id == "old-pelican"
    assert await (await (await models.model("old")).prompt("Hi")).text() == "sync"


@pytest.mark.parametrize("last", ["sync", "async"])
async def test_later_of_two_models_wins(make_datasette, llm_plugin, last: str) -> None:
    """Of two models with one id the later one counts, whichever of them is async."""

    class Both:
        @llm.hookimpl
        def register_models(self, register: Callable[..., None]) -> None:
            models = {"sync": SyncModel("pelican"), "async": SyncModel("pelican")}
            for kind in sorted(models, key=lambda kind: kind == last):
                twin = ScriptedModel("pelican", ["async"]) if kind == "async" else None
                register(models[kind], twin)

    llm_plugin(Both())
    model = await LLM(make_datasette()).model("pelican")

    assert await (await model.prompt("Hi")).text() == last


async def test_async_model_gets_no_thread(make_datasette, llm_plugin) -> None:
    llm_plugin(Provider("pelican"))
    _, entry = await find_model(make_datasette(), "pelican")

    assert isinstance(entry.model, ScriptedModel)


async def test_what_llm_could_not_prompt_is_no_model(make_datasette, llm_plugin) -> None:
    class Odd:
        @llm.hookimpl
        def register_models(self, register: Callable[..., None]) -> None:
            register(SimpleNamespace(model_id="odd"))

    llm_plugin(Odd(), "odd-plugin")
    llm_plugin(Provider("pelican"))
    view = await snapshot_of(make_datasette())

    assert "odd" not in view.catalog.entries
    assert "pelican" in view.catalog.entries
    assert any("odd-plugin" in problem for problem in view.catalog.problems)


async def test_an_unknown_model_is_told_with_what_to_do(make_datasette) -> None:
    with pytest.raises(ModelNotFoundError) as raised:
        await LLM(make_datasette()).model("pelican")

    assert str(raised.value) == (
        "Unknown model: 'pelican'. Install the llm plugin that provides it with "
        "'datasette install', or see the known models with 'llm models'"
    )


def test_datasette_in_two_event_loops(make_datasette, llm_plugin, clock: SimpleNamespace) -> None:
    llm_plugin(Provider("pelican"))
    models = LLM(make_datasette({"default_model": "pelican"}))

    async def use() -> list[str]:
        response = await (await models.model()).prompt("hi")
        clock.now += 61  # so that the loop ends with a refresh on its way
        return [await response.text(), (await models.models())[0].model_id]

    assert asyncio.run(use()) == ["Hello", "pelican"]
    llm_plugin(Provider("heron"))
    assert asyncio.run(use()) == ["Hello", "pelican"]


def test_stalled_event_loop_blocks_no_other(
    make_datasette, llm_plugin, clock: SimpleNamespace
) -> None:
    """An event loop does not wait for a catalog that a stalled event loop is building."""
    provider = llm_plugin(Provider("pelican"))
    models = LLM(make_datasette())
    with asyncio.Runner() as still:
        still.run(models.model("pelican"))
        clock.now += 61
        provider.may_answer.clear()
        still.run(models.model("pelican"))  # leaves a refresh running

        llm.plugins.pm.unregister(provider)
        llm_plugin(Provider("heron"))
        assert asyncio.run(models.model("heron")).model_id == "heron"

        provider.may_answer.set()


async def test_each_datasette_has_a_snapshot_of_its_own(make_datasette, llm_plugin) -> None:
    provider = llm_plugin(Provider("pelican"))
    one, other = make_datasette(), make_datasette()

    _, first = await find_model(one, "pelican")
    _, second = await find_model(other, "pelican")

    assert first.model is not second.model
    assert len(provider.threads) == 2


async def test_percent_signs_in_a_failure_are_logged(
    llm_plugin, caplog: pytest.LogCaptureFixture
) -> None:
    class Percent:
        @llm.hookimpl
        def register_models(self) -> None:
            raise ValueError("100% %s")

    llm_plugin(Percent(), name="percent")
    await CatalogSource().current()

    assert caplog.messages[0].endswith("ValueError: 100% %s")


def in_a_process_of_its_own(program: str, plugins: str | None = "llm-echo") -> str:
    """What a program prints; of llm's plugins it loads those, or all."""
    environment = {**os.environ, "LLM_LOAD_PLUGINS": plugins or ""}
    if plugins is None:
        del environment["LLM_LOAD_PLUGINS"]
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_instances_start_together() -> None:
    program = """
import asyncio
from datasette.app import Datasette
from datasette_llm import LLM

async def main():
    async def later(seconds):
        await asyncio.sleep(seconds)
        return (await LLM(Datasette(memory=True)).explain("gpt-4o-mini")).steps[0].passed
    print(await asyncio.gather(*[later(n / 50) for n in range(4)]))

asyncio.run(main())
"""
    assert in_a_process_of_its_own(program).strip() == "[True, True, True, True]"


UNLOADABLE = r"""
import asyncio, os, pathlib, sys, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(folder)

def plugin(name, source):
    (folder / f"{name}.py").write_text(source)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[llm]\n{name} = {name}\n")

plugin("aaa", BROKEN)
plugin("bbb", "import also_missing")
plugin("zzz", '''
import llm

class Heron(llm.Model):
    model_id = "heron"
    def execute(self, *args): yield "hi"

@llm.hookimpl
def register_models(register): register(Heron())
''')
sys.path.insert(0, str(folder))
import llm
from datasette.app import Datasette
from datasette_llm import LLM, ModelNotFoundError

async def main():
    if ALREADY:  # another plugin of Datasette was first
        try:
            llm.get_models()
        except BaseException as error:
            print("llm itself:", type(error).__name__)
    endpoint = {"model": "near", "api_base": "http://127.0.0.1:9/v1"}
    config = {"plugins": {"datasette-llm": {"endpoints": [endpoint]}}}
    datasette = Datasette(memory=True, config=config | {"permissions": {"manage-llm": True}})
    await datasette.invoke_startup()
    models = LLM(datasette)
    for name in ["heron", "near", "gpt-4o-mini"]:
        print((await models.model(name)).model_id)
    try:
        await models.model("pelican")
    except ModelNotFoundError as error:
        print("refused:", error)
    overview = (await datasette.client.get("/-/llm.json")).json()
    print("overview:", *overview["warnings"])
    page = (await datasette.client.get("/-/llm/explain.json?model=pelican")).json()
    print("explain:", page["decision"]["reason"])

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("already", "broken", "chosen"),
    [
        (False, "import missing", None),
        (True, "raise SystemExit(3)", None),
        (False, "a syntax error", "aaa,zzz,bbb"),
        (True, "import missing", "aaa,zzz,bbb"),
        (False, "raise BaseException('panicked')", None),
    ],
)
def test_e2_unloadable_plugin_leaves_the_others(
    already: bool, broken: str, chosen: str | None
) -> None:
    program = f"BROKEN, ALREADY = {broken!r}, {already}\n{UNLOADABLE}"

    said = in_a_process_of_its_own(program, chosen).splitlines()

    found = said[1:] if already else said
    assert found[:3] == ["heron", "near", "gpt-4o-mini"]
    for line, place in zip(found[3:], ["refused", "overview", "explain"], strict=True):
        assert line.startswith(f"{place}: ")
        assert "llm plugin 'aaa' cannot be loaded: " in line
        assert "'bbb' cannot be loaded: ModuleNotFoundError: No module named 'also_miss" in line


async def test_e2_model_with_a_broken_property(make_datasette, llm_plugin) -> None:
    class Broken(ScriptedModel):
        @property
        def needs_key(self) -> str:
            raise ConnectionError("no server")

        @needs_key.setter
        def needs_key(self, value: object) -> None:
            pass

    class Plugin:
        @llm.hookimpl
        def register_models(self, register: Callable[..., None]) -> None:
            register(SyncModel("broken"), Broken("broken"))

    llm_plugin(Plugin(), name="llm-broken")
    datasette = make_datasette()
    await datasette.invoke_startup()

    assert "echo" in {model.model_id for model in await LLM(datasette).models()}
    page = await explain_page(datasette, Request.fake("/-/llm/explain"))
    said = "llm plugin 'llm-broken' failed while listing its models: ConnectionError: no server"
    assert page["problems"] == [said]


async def test_e9_folder_that_cannot_be_made(
    make_datasette, register_models, monkeypatch, tmp_path: Path, caplog
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "file" / "llm"))
    monkeypatch.setenv("DATASETTE_SECRETS_NEAR", "sk-of-the-endpoint")
    register_models(ScriptedModel("pelican", needs_key="birds"))
    near = {"model": "near", "api_base": "http://127.0.0.1:9/v1", "key": "NEAR"}
    datasette = make_datasette({"endpoints": [near], "retries": 0})
    await datasette.invoke_startup()
    models = LLM(datasette)

    assert "near" in [model.model_id for model in await models.models()]
    said = "llm's folder cannot be made"
    page = await overview(datasette, Request.fake("/"))
    for text in "\n".join(page["warnings"]), caplog.text:
        assert said in text
        assert "Set LLM_USER_PATH to a folder that can be written" in text
    with pytest.raises(ModelNotFoundError, match=said):
        await models.model("heron")
    with pytest.raises(llm.NeedsKeyException, match="LLM_USER_PATH"):
        await (await models.model("pelican")).prompt("hi")
    with pytest.raises(Exception, match=r"(?i)connection|refused|reach"):
        await (await models.model("near")).prompt("hi")


async def test_id_that_is_another_models_alias(
    make_datasette, register_models, llm_folder: Path
) -> None:
    """An id that is another model's alias gives that model, as in llm."""
    register_models(ScriptedModel("dear"), ScriptedModel("cheap"))
    (llm_folder / "aliases.json").write_text('{"dear": "cheap"}')
    models = LLM(make_datasette())

    assert (await models.model("dear")).model_id == llm.get_async_model("dear").model_id == "cheap"
    assert "dear" not in [model.model_id for model in await models.models()]
    blocked = LLM(make_datasette({"blocked_models": ["dear"]}))
    assert "cheap" not in [model.model_id for model in await blocked.models()]


class PanicError(BaseException):
    """As what a library in Rust raises."""


@pytest.mark.parametrize("error", [SystemExit(1), RecursionError("deep"), PanicError("panicked")])
async def test_plugin_that_exits_leaves_the_others(make_datasette, error: BaseException) -> None:
    class Ends:
        @llm.hookimpl
        def register_models(self, register: Any) -> None:
            raise error

    plugin = Ends()
    llm.plugins.pm.register(plugin)
    try:
        models = await LLM(make_datasette()).models()
    finally:
        llm.plugins.pm.unregister(plugin)
    assert "echo" in [model.model_id for model in models]


@pytest.mark.parametrize("aliases", [[["a list"]], [None], [5]])
async def test_invalid_alias_leaves_the_others(make_datasette, aliases: list[Any]) -> None:
    class Odd:
        @llm.hookimpl
        def register_models(self, register: Any) -> None:
            register(ScriptedModel("odd"), ScriptedModel("odd"), aliases=aliases)

    plugin = Odd()
    llm.plugins.pm.register(plugin)
    try:
        models = await LLM(make_datasette()).models()
    finally:
        llm.plugins.pm.unregister(plugin)
    assert "echo" in [model.model_id for model in models]
    assert "odd" not in [model.model_id for model in models]


@pytest.mark.parametrize("file", ["aliases.json", "keys.json"])
async def test_deeply_nested_file_costs_only_itself(
    make_datasette, llm_folder: Path, file: str
) -> None:
    (llm_folder / file).write_text("[" * 5_000)
    assert "echo" in [model.model_id for model in await LLM(make_datasette()).models()]


async def test_model_is_known_by_its_sync_name(make_datasette) -> None:
    class Two:
        @llm.hookimpl
        def register_models(self, register: Any) -> None:
            register(ScriptedModel("vendor/sync"), ScriptedModel("vendor/async"))

    plugin = Two()
    llm.plugins.pm.register(plugin)
    try:
        assert (await LLM(make_datasette()).model("vendor/sync")).model_id == "vendor/async"
    finally:
        llm.plugins.pm.unregister(plugin)
