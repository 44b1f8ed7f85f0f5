"""A vLLM of ke-tools' own lives as long as ke-tools does, comes back when it dies, and says why where it does not."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ke_tools.config import Settings
from ke_tools.errors import Conflict, InvalidInput, ModelUnavailable, Unsupported
from ke_tools.models import checkpoint
from ke_tools.models.engine import Request
from ke_tools.servers import doctor
from ke_tools.servers.doors import free_port
from ke_tools.servers.engines import _keeper, _supervised
from ke_tools.servers.engines._supervised import Pace, Supervised
from ke_tools.servers.engines.loading import WORKER, load_engine
from ke_tools.servers.engines.recipe import LORA, Recipe, environment_of, recipe_of
from ke_tools.servers.service import open_service
from ke_tools.testing import thimble_path
from tests.processes import is_alive
from tests.quantised import quantised

ROOT = Path(__file__).parents[3]
QUICK = Pace(look=0.01, health=0.02, first=0.01, longest=0.02, most=3)
DEADLINE_SECONDS = 60  # for machines that do much else


class Fake:
    """The program, and what it was told and tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "vllm"
        source = Path(__file__).with_name("fake_vllm.py").read_text("utf-8")
        self.program.write_text(f"#!{sys.executable} -S\n{source}", "utf-8")
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)

    @property
    def starts(self) -> list[dict[str, Any]]:
        """What each start of it told."""
        file = self.folder / "starts.jsonl"
        written = file.read_text("utf-8") if file.exists() else ""
        return [json.loads(line) for line in written[: written.rfind("\n") + 1].splitlines()]  # the last may be half written

    @property
    def processes(self) -> list[int]:
        """Of all starts."""
        return [start[name] for start in self.starts for name in ("pid", "worker")]

    def tell(self, what: str) -> None:
        """Have it behave in a way from now on."""
        (self.folder / what).touch()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A program that stands for vLLM."""
    folder = tmp_path / "fake"
    folder.mkdir()
    monkeypatch.setenv("FAKE_VLLM", str(folder))
    return Fake(folder)


@pytest.fixture
def run(fake: Fake, tmp_path: Path) -> Iterator[Callable[..., Supervised]]:
    """Runs one in a home; all end with the test."""
    made: list[Supervised] = []
    folder = tmp_path / "run"
    folder.mkdir()

    def run(*, waits: bool = True, model: str = "model", **more: Any) -> Supervised:
        recipe = Recipe(str(fake.program), tmp_path / model, "tiny", ("--more",))
        made.append(
            Supervised(folder, recipe, log_file=tmp_path / "vllm.log", environment=environment_of(os.environ), **{"pace": QUICK, **more})
        )
        if waits:
            made[-1].wait(lambda _said: None)
        return made[-1]

    yield run
    for one in made:
        one.close()


def until(true: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def are_gone(fake: Fake) -> bool:
    """Whether nothing of it is left."""
    return not any(map(is_alive, fake.processes))


def answers(own: Supervised) -> bool:
    """Whether it lists its models to who has the key."""
    try:
        return httpx.get(f"{own.url}/v1/models", headers={"authorization": f"Bearer {own.key}"}).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def test_it_is_started_on_loopback_with_a_key_that_no_list_of_processes_shows(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, §1: started with the right flags, key, plugin."""
    own = run()
    assert answers(own)
    assert own.error() is None
    assert httpx.get(f"{own.url}/v1/models").status_code == httpx.codes.UNAUTHORIZED
    [start] = fake.starts
    arguments, environment = start["arguments"], start["environment"]
    assert arguments[:1] == ["serve"]
    assert arguments[-1] == "--more"
    assert arguments[arguments.index("--host") + 1] == "127.0.0.1"
    assert own.key not in " ".join(arguments)
    assert len(own.key) > 30
    assert environment["VLLM_API_KEY"] == own.key
    assert environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert environment["VLLM_PLUGINS"] == "ke_tools,ke_tools_status"


def test_where_it_dies_before_it_answers_its_first_error_and_its_last_words_are_told(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, §1: a start that fails says why."""
    fake.tell("broken")
    with pytest.raises(ModelUnavailable, match=r"did not start: it ended with code 3; .*ValueError: no memory is left .*root cause above"):
        run()
    assert len(fake.starts) == 1


def test_killed_it_comes_back_at_the_same_place(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, bars: engine killed; recovers by itself."""
    own = run()
    before = own.url, own.key
    os.kill(fake.starts[0]["pid"], signal.SIGKILL)
    until(lambda: len(fake.starts) == 2 and answers(own) and own.error() is None)
    assert (own.url, own.key) == before
    until(lambda: not is_alive(fake.starts[0]["worker"]))


def test_while_it_is_away_it_is_told_how_it_ended(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, §1: the base model's absence has a reason."""
    own = run(pace=replace(QUICK, first=60.0, longest=60.0))
    os.kill(fake.starts[0]["pid"], signal.SIGKILL)
    until(lambda: "started again" in str(own.error()))
    assert "was ended by SIGKILL" in str(own.error())
    assert "vllm.log" in str(own.error())


def test_after_several_deaths_in_a_row_it_is_given_up(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, §1: no endless circle of starts."""
    own = run()
    fake.tell("broken")
    os.kill(fake.starts[0]["pid"], signal.SIGKILL)
    until(lambda: "3 times in a row" in str(own.error()))
    assert "no memory is left" in str(own.error())
    assert len(fake.starts) == 3
    assert are_gone(fake)


def test_one_whose_engine_is_dead_is_started_again(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, bars: engine killed; vLLM then answers its health with 503."""
    own = run()
    fake.tell("sick")
    until(lambda: not is_alive(fake.starts[0]["pid"]))
    (fake.folder / "sick").unlink()
    until(lambda: len(fake.starts) > 1 and own.error() is None)


def test_closed_it_is_gone_with_its_workers(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, §1: stopped with ke-tools."""
    own = run()
    own.close()
    assert are_gone(fake)


def test_its_keeper_killed_it_is_ended_and_started_again(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, §1: whatever is killed, no server runs that nobody watches."""
    own = run()
    keeper = psutil.Process(fake.starts[0]["pid"]).ppid()
    os.kill(keeper, signal.SIGKILL)
    until(lambda: len(fake.starts) == 2 and own.error() is None)
    assert not any(map(is_alive, fake.processes[:2]))


def test_when_ke_tools_is_killed_nothing_is_left(fake: Fake, tmp_path: Path) -> None:
    """Issue 7, §1: also by a signal that no process sees."""
    script = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from ke_tools.servers.engines.recipe import Recipe\n"
        "from ke_tools.servers.engines._supervised import Supervised\n"
        f"folder, recipe = Path({str(tmp_path)!r}), Recipe({str(fake.program)!r}, Path('m'), 'tiny')\n"
        "own = Supervised(folder, recipe, log_file=folder / 'log', environment=dict(os.environ))\n"
        "own.wait(lambda said: None)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert all(map(is_alive, fake.processes))
        process.kill()
    until(lambda: are_gone(fake))


def test_one_that_will_not_end_is_killed(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, §1: no server is left behind that does not listen."""
    monkeypatch.setattr(_keeper, "GRACE_SECONDS", 0.05)
    monkeypatch.setenv("VLLM_API_KEY", "k")
    fake.tell("stubborn")
    watched, ours = os.pipe()
    heard, told = os.pipe()
    command = [str(fake.program), "serve", "--port", str(free_port())]
    with closing(_keeper.Log(tmp_path / "log")) as log, ThreadPoolExecutor(1) as pool:
        code = pool.submit(_keeper.keep, log, command, watched, told)
        until(lambda: bool(fake.starts))
        os.close(ours)  # as if ke-tools were gone
        assert code.result() == -signal.SIGKILL
    assert are_gone(fake)
    for descriptor in (watched, heard, told):
        os.close(descriptor)


def test_the_log_stays_small(tmp_path: Path) -> None:
    """Issue 7, §1: bounded; what was said last is there."""
    with closing(_keeper.Log(tmp_path / "vllm.log", most=1000)) as log:
        for number in range(100):
            log.write(b"line %04d of one hundred\n" % number)
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("vllm*")}
    assert sizes.keys() == {"vllm.log", "vllm.log.1"}
    assert max(sizes.values()) <= 1000
    assert b"line 0099" in (tmp_path / "vllm.log").read_bytes()
    assert stat.S_IMODE((tmp_path / "vllm.log").stat().st_mode) == 0o600


def test_a_program_that_cannot_be_run_is_told(tmp_path: Path) -> None:
    """Issue 7, bad input: what is there, and is no program."""
    (tmp_path / "vllm").write_text("#!/nowhere/python\n", "utf-8")
    (tmp_path / "vllm").chmod(0o755)
    recipe = Recipe(str(tmp_path / "vllm"), tmp_path, "tiny")
    own = Supervised(tmp_path, recipe, log_file=tmp_path / "log", environment=dict(os.environ), pace=QUICK)
    with pytest.raises(ModelUnavailable, match="cannot be started: No such file"):
        own.wait(lambda _said: None)
    own.close()


def test_another_process_of_the_home_asks_the_same_one(run: Callable[..., Supervised], fake: Fake, tmp_path: Path) -> None:
    """Issue 7, §5: the worker's questions go to the served engine; a second would want the memory twice."""
    first, second = run(), run()
    assert (first.url, first.key) == (second.url, second.key)
    assert len(fake.starts) == 1
    second.close()
    assert answers(first)
    assert stat.S_IMODE((tmp_path / "run" / "vllm.json").stat().st_mode) == 0o600


def test_who_serves_takes_over_where_the_process_that_ran_it_is_gone(run: Callable[..., Supervised], fake: Fake) -> None:
    """Issue 7, §1: who asks need not notice; the worker alone starts none."""
    first, second, worker = run(), run(), run(takes_over=False)
    first.close()
    until(lambda: len(fake.starts) == 2 and answers(second) and second.error() is None)
    until(lambda: worker.error() is None)
    second.close()
    until(lambda: worker.error() is not None)
    assert "is gone" in str(worker.error())
    assert len(fake.starts) == 2
    assert are_gone(fake)


def test_a_home_serves_one_model(run: Callable[..., Supervised], monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, bad input: what another process serves is not what is asked for."""
    monkeypatch.setattr(_supervised, "_PATIENCE_SECONDS", 0.05)
    run()
    with pytest.raises(Conflict, match=f"process {os.getpid()}, serves .*model"):
        run(model="other")


# -- from settings ---------------------------------------------------------------------------------------------------------------------


def own(settings: Settings, fake: Fake, **more: Any) -> Settings:
    """Settings by which the thimble is served so."""
    return replace(settings, engine="vllm", vllm=str(fake.program), **{"model": str(thimble_path()), **more})


def test_the_flags_are_those_of_the_page() -> None:
    """Docs/vllm.md: one set of flags, whoever starts it."""
    page = (ROOT / "docs" / "vllm.md").read_text("utf-8")
    [asked] = re.findall(r"^vllm serve \S+ --port 8000 (--enable-lora.*?\n.*?)$", page, re.MULTILINE)
    assert asked.replace("\\\n", "").split() == list(LORA)


def test_what_the_user_adds_stands_last_and_what_is_ours_is_refused(settings: Settings, fake: Fake) -> None:
    """Issue 7, §1: the user's flags win, but for place and key."""
    given = own(settings, fake, vllm_args=("--max-loras", "2"), dtype="bfloat16")
    command = recipe_of(given, thimble_path(), "thimble").command(9)
    assert command[-2:] == ["--max-loras", "2"]
    assert "bfloat16" in command
    for taken in ("--api-key", "--host=0.0.0.0"):
        with pytest.raises(InvalidInput, match=taken[:6]):
            recipe_of(own(settings, fake, vllm_args=(taken,)), thimble_path(), "thimble")


def test_a_program_that_is_not_there_is_told_with_what_to_install(settings: Settings) -> None:
    """Issue 7, bad input: no vLLM."""
    with pytest.raises(ModelUnavailable, match=r"'no-such-vllm'.*pip install .*ke-tools-vllm"):
        load_engine(replace(settings, engine="vllm", vllm="no-such-vllm", model=str(thimble_path())), lambda _said: None)


def test_arguments_for_a_server_that_runs_already_are_refused(settings: Settings, fake: Fake) -> None:
    """Issue 7, bad input: what would do nothing."""
    with pytest.raises(InvalidInput, match="--vllm-arg"):
        load_engine(own(settings, fake, vllm_args=("--x",), vllm_url=("http://127.0.0.1:9",)), lambda _said: None)


def test_the_environment_has_none_of_our_settings_and_keeps_the_users_plugins() -> None:
    """Issue 7, §1: another server's key goes to nobody."""
    made = environment_of({"KE_UPSTREAM_KEY": "secret", "PATH": "/bin", "VLLM_PLUGINS": "theirs", "VLLM_CPU_KVCACHE_SPACE": "9"})
    assert made.keys() & {"KE_UPSTREAM_KEY"} == set()
    assert made["PATH"] == "/bin"
    assert made["VLLM_PLUGINS"] == "theirs,ke_tools,ke_tools_status"
    assert made["VLLM_CPU_KVCACHE_SPACE"] == "9"


def test_an_engine_starts_one_answers_by_it_says_why_it_is_away_and_ends_it(settings: Settings, fake: Fake) -> None:
    """Issue 7, §1: start, supervise, stop."""
    said: list[str] = []
    engine: Any = load_engine(own(settings, fake), said.append)
    try:
        request = Request(prompt="The capital of Australia is", max_tokens=4)
        assert engine.generate([request])[0].text == " Canberra."
        assert engine.model_id == "thimble"
        assert engine.trouble == ""
        os.kill(fake.starts[0]["pid"], signal.SIGKILL)
        until(lambda: bool(engine.trouble))
        with pytest.raises(ModelUnavailable, match="vLLM does not answer"):
            engine.generate([request])
        until(lambda: not engine.trouble)
        until(lambda: _text(engine, request) == " Canberra.")
    finally:
        engine.close()
    assert any("starting vLLM" in one for one in said)
    assert are_gone(fake)


def test_the_quantised_model_is_started_and_the_engine_is_its_twins(settings: Settings, fake: Fake, tmp_path: Path) -> None:
    """Issue 7, §5: vLLM serves one checkpoint, releases are of the other."""
    packed = quantised(thimble_path(), tmp_path / "packed")
    engine: Any = load_engine(own(settings, fake, edit_model=str(thimble_path()), model=str(packed)), lambda _said: None)
    engine.close()
    assert engine.fingerprint == checkpoint.fingerprint(thimble_path(), cache=settings.cache)
    assert engine.model_id == "packed"
    [start] = fake.starts
    assert start["arguments"][:4] == ["serve", str(packed), "--served-model-name", "packed"]


def test_what_cannot_be_twins_is_refused_before_anything_is_started(settings: Settings, fake: Fake, tmp_path: Path) -> None:
    """Issue 7, §5, bad input."""
    packed = quantised(thimble_path(), tmp_path / "packed")
    config = packed / "config.json"
    config.write_text(config.read_text("utf-8").replace('"vocab_size": 2048', '"vocab_size": 2050'), "utf-8")
    given = own(settings, fake, edit_model=str(thimble_path()), model=str(packed))
    with pytest.raises(Unsupported, match="vocab_size is 2048 there, and 2050 in what is served"):
        load_engine(given, lambda _said: None)
    assert not fake.starts


def _text(engine: Any, request: Request) -> str:
    try:
        return str(engine.generate([request])[0].text)
    except ModelUnavailable:
        return ""


def test_the_worker_asks_the_servers_vllm(settings: Settings, fake: Fake) -> None:
    """Issue 7, §5: only the gate through the served engine decides."""
    first = load_engine(own(settings, fake), lambda _said: None)
    worker = load_engine(own(settings, fake), lambda _said: None, owner=WORKER)
    worker.close()
    first.close()
    assert len(fake.starts) == 1


def test_doctor_tells_what_would_be_started_and_starts_nothing(settings: Settings, fake: Fake) -> None:
    """Issue 7, §3: doctor checks the server."""
    service = open_service(own(settings, fake))
    try:
        [model] = [check for check in doctor.examine(service, deep=False)["checks"] if check["name"] == "model"]
    finally:
        service.close()
    assert model["ok"]
    assert str(fake.program) in model["detail"]
    assert not fake.starts
