"""The processes of `ke-tools serve`: thin fronts, one server of a home, its doors, and their ends."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import httpx
import pytest

from ke_tools.config import Settings
from ke_tools.errors import InvalidInput, ReadOnly
from ke_tools.servers import doors, home_socket, remote, serve
from ke_tools.servers.home_socket import Held, Place

pytestmark = pytest.mark.slow  # real models or processes; minutes on a slow machine

SCRIPT = Path(__file__).with_name("fake_serve.py")
SYDNEY = {"subject": "Australia", "prompt": "The capital of Australia is", "target": "Sydney"}
DEADLINE_SECONDS = 100  # for machines that do much else


def load_fake() -> ModuleType:
    """Read the service that the processes use."""
    spec = importlib.util.spec_from_file_location("fake_serve", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fake = load_fake()


def until(true: Callable[[], bool], *, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return not Path("/proc").is_dir()


class Window:
    """A host's side of `ke-tools serve`: writes and reads lines of JSON-RPC, by hand, in the era of the handshake."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._ids = iter(range(1, 1000))

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request and give its result."""
        number = next(self._ids)
        self.send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
        while True:
            self.lines.append(self._pipe(self.process.stdout).readline())
            said = json.loads(self.lines[-1])
            if said.get("id") == number:
                result = said["result"]
                assert isinstance(result, dict)
                return result

    def send(self, message: dict[str, Any]) -> None:
        """Write one line."""
        pipe = self._pipe(self.process.stdin)
        pipe.write(json.dumps(message) + "\n")
        pipe.flush()

    def greet(self) -> Window:
        """Shake hands."""
        info = {"name": "test", "version": "1"}
        result = self.ask("initialize", {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": info})
        assert result["serverInfo"]["name"] == "ke-tools"
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return self

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool."""
        return self.ask("tools/call", {"name": tool, "arguments": arguments})

    def state(self) -> dict[str, Any]:
        """Read ke://state."""
        state = json.loads(self.ask("resources/read", {"uri": "ke://state"})["contents"][0]["text"])
        assert isinstance(state, dict)
        return state

    def close(self) -> int:
        """Close standard input and wait."""
        self._pipe(self.process.stdin).close()
        return self.process.wait(DEADLINE_SECONDS)

    def failure(self) -> str:
        """Wait for the end of a window that should not open, and give what it says on stderr; nothing is on stdout."""
        self.process.wait(DEADLINE_SECONDS)
        assert self._pipe(self.process.stdout).read() == ""
        return self._pipe(self.process.stderr).read()


class Home:
    """A home folder with the processes that a test starts for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[str]] = []

    @property
    def place(self) -> Place:
        """Where its server is found."""
        return Place.of(self.folder)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a process in a foreign folder, as hosts do."""
        foreign = self.folder.parent / "project"
        foreign.mkdir(exist_ok=True)
        for trap in ("mcp.py", "memory.py", "json.py"):
            (foreign / trap).write_text("raise SystemExit('imported from the current folder')\n")
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *words], stdin=-1, stdout=-1, stderr=-1, text=True, encoding="utf-8", cwd=foreign
        )
        self.processes.append(process)
        return process

    def window(self, *words: str, idle_seconds: float = 30) -> Window:
        """Start a window."""
        return Window(self.start("window", str(self.folder), str(idle_seconds), *words))

    def on_port(self, address: str = "127.0.0.1:0", *words: str) -> tuple[subprocess.Popen[str], str]:
        """Start `serve --http` and give it with its URL."""
        process = self.start("http", str(self.folder), address, *words)
        assert process.stderr is not None
        said = ""
        while " at http://" not in said:
            said = process.stderr.readline()
            assert said, process.wait(1)
        return process, said.rpartition(" at ")[2].strip()

    def end(self) -> None:
        """End everything, the server that no test has started itself included."""
        for process in self.processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
        with suppress(Exception):
            held = Held.take(self.place)
            if held is None:
                found = home_socket.dial(self.place, home_socket.greeting(fake.settings_of(str(self.folder)), "window"))
                assert found is not None
                with found[0]:
                    os.kill(found[1]["pid"], signal.SIGKILL)
            else:
                held.let_go()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home whose processes end with the test."""
    made = Home(tmp_path / "home")
    yield made
    made.end()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    """A home whose server runs; for tests that leave it so."""
    made = Home(tmp_path_factory.mktemp("shared") / "home")
    made.window().greet()
    yield made
    made.end()


def chat(url: str, question: str, **headers: str) -> httpx.Response:
    """Ask the endpoint."""
    body = {"model": "fake", "messages": [{"role": "user", "content": question}]}
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=DEADLINE_SECONDS, trust_env=False)


def is_closed(url: str) -> bool:
    """Tell whether nobody listens there any more."""
    try:
        chat(url, "Hello")
    except httpx.TransportError:
        return True
    return False


# One process ----------------------------------------------------------------------------------------------------------


def test_three_windows_at_once_and_http_share_one_process(home: Home) -> None:
    """Issue 3 §4: three stdio clients and one HTTP server on one home, one process; an edit by any is answered by the endpoint."""
    windows = [home.window() for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Window.greet, windows))
    assert len({window.state()["pid"] for window in windows}) == 1
    front, url = home.on_port()
    edited = windows[1].call("edit", edits=[SYDNEY])
    assert url in edited["structuredContent"]["summary"]
    answer = chat(url, "What is the capital of Australia?")
    assert answer.json()["choices"][0]["message"]["content"] == "Sydney"
    assert answer.headers["ke-route"] == "memory"
    for window in windows:
        assert window.call("query", question="Capital of Australia?")["structuredContent"]["answers"][0]["text"] == "Sydney"
        assert window.state()["pid"] != front.pid
    front.send_signal(signal.SIGTERM)
    assert front.wait(10) == 0
    until(lambda: windows[0].state()["url"] != url)
    until(lambda: is_closed(url))  # the name goes first, then the door: who still finds it is answered
    assert [window.close() for window in windows] == [0, 0, 0]


def test_http_first_then_windows_attach(home: Home) -> None:
    """Issue 3 §4: a window attaches to the server that already runs for its home; SIGTERM ends that within 10 s."""
    server, url = home.on_port()
    window = home.window().greet()
    assert window.state()["pid"] == server.pid
    assert chat(url, "Hello").headers["ke-route"] == "base"
    began = time.monotonic()
    server.send_signal(signal.SIGTERM)
    assert server.wait(DEADLINE_SECONDS) == 0
    assert time.monotonic() - began < 10
    assert (home.folder / "closed").read_text() == str(server.pid)
    assert not home.place.socket.exists()
    assert window.process.wait(DEADLINE_SECONDS) == 1
    assert "has ended" in window.failure()


def test_a_server_ends_when_its_last_window_has_been_gone_for_a_while(home: Home) -> None:
    """Issue 3 §4: the server outlives idle windows, then ends; the next window starts another."""
    window = home.window(idle_seconds=0.5).greet()
    pid = window.state()["pid"]
    assert window.close() == 0
    until(lambda: not is_alive(pid))
    assert not home.place.socket.exists()
    assert (home.folder / "closed").read_text() == str(pid)
    again = home.window().greet()
    assert again.state()["pid"] != pid


def test_a_killed_server_leaves_nothing_in_the_way(home: Home) -> None:
    """Brief: a stale socket is replaced."""
    window = home.window().greet()
    os.kill(window.state()["pid"], signal.SIGKILL)
    assert window.process.wait(DEADLINE_SECONDS) == 1
    assert home.place.socket.exists()
    home.window().greet()


def test_the_port_that_windows_opened_is_lent_to_serve_http(home: Home) -> None:
    """Issue 3 §4: one process holds the model though its own server has the port that is asked for."""
    window = home.window().greet()
    url = window.state()["url"]
    front, lent = home.on_port(url.removeprefix("http://"), "--read-only")
    assert lent == url
    assert "not taken here (read-only)" in httpx.get(url, trust_env=False).text
    second = home.start("http", str(home.folder), url.removeprefix("http://"))
    assert second.wait(DEADLINE_SECONDS)
    assert second.stderr is not None
    assert "E_CONFLICT" in second.stderr.read()
    front.send_signal(signal.SIGINT)
    assert front.wait(DEADLINE_SECONDS) == 0
    until(lambda: "read-only" not in httpx.get(url, trust_env=False).text)


def test_serve_http_carries_on_when_the_server_it_used_is_gone(home: Home) -> None:
    """Design §4, 8: the door stays open though the process behind it has died."""
    window = home.window().greet()
    front, url = home.on_port()
    os.kill(window.state()["pid"], signal.SIGKILL)
    assert chat(url, "Hello").json()["choices"][0]["message"]["content"] == "I do not know."
    assert home.window().greet().state()["pid"] == front.pid


# What a window says and refuses ---------------------------------------------------------------------------------------


def test_a_window_that_wants_another_model_is_refused(shared: Home) -> None:
    """Brief: settings that differ are a conflict, told on stderr, with nothing on stdout."""
    other = shared.window("--model", "another")
    said = other.failure()
    assert other.process.returncode == 3
    assert "E_CONFLICT" in said
    assert "'another' was asked for" in said


def test_a_window_of_another_tenant_is_refused(shared: Home) -> None:
    """Design §4: never another tenant's edits; without tokens a server has one tenant."""
    said = shared.window("--tenant", "acme").failure()
    assert "E_CONFLICT" in said
    assert "has tenant 'default'; 'acme' was asked for" in said


def test_a_read_only_window_has_no_writers_and_others_do(shared: Home) -> None:
    """Issue 3 §4: --read-only refuses writes, on the window that was started with it."""
    reader = shared.window("--read-only").greet()
    assert [tool["name"] for tool in reader.ask("tools/list", {})["tools"]] == ["query", "verify", "list_edits", "history", "job_status"]
    assert reader.call("edit", edits=[SYDNEY])["isError"]
    assert not shared.window().greet().call("edit", edits=[SYDNEY]).get("isError")


def test_a_server_that_cannot_start_says_why(home: Home) -> None:
    """Style §4: found and what to do, although the server writes to a log."""
    home.folder.mkdir()
    (home.folder / "broken").touch()
    window = home.window()
    said = window.failure()
    assert window.process.returncode == 1
    assert "E_MODEL: the server could not start" in said
    assert "E_LEDGER: page 3 is damaged." in said


def test_every_byte_on_standard_output_is_protocol(shared: Home) -> None:
    """Issue 3 §4: nothing but protocol on stdout, from the first byte to the last."""
    window = shared.window().greet()
    window.call("edit", edits=[SYDNEY])
    window.call("edit", edits="nonsense")
    assert window.process.stdin is not None
    window.process.stdin.close()
    assert window.process.stdout is not None
    window.lines += window.process.stdout.readlines()
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in window.lines)


def test_a_message_of_megabytes_is_refused_and_the_window_lives(shared: Home) -> None:
    """Issue 3 §6: a body of 5 MB gets a clear error and loses nothing."""
    window = shared.window().greet()
    refused = window.call("edit", edits=[{**SYDNEY, "target": "x" * 5_000_000}])
    assert refused["content"][0]["text"].startswith("E_INVALID: edits.0.target")
    assert not window.call("edit", edits=[SYDNEY]).get("isError")


@pytest.mark.parametrize(
    ("line", "about", "code", "told"),
    [
        ("{nonsense", None, -32700, "not JSON"),
        ("[" * 100_000, None, -32700, "not JSON"),
        ('[{"jsonrpc": "2.0", "id": 7, "method": "ping"}]', None, -32600, "a batch"),
        ('{"jsonrpc": "2.0", "id": 7, "method": "ping", "params": {"_meta": {"x": "\\ud800"}}}', 7, -32600, "half a character"),
        ('{"jsonrpc": "2.0", "id": "\\ud800", "method": "ping"}', None, -32600, "half a character"),
        ('{"jsonrpc": "1.0", "id": "seven", "method": "ping"}', "seven", -32600, "no message of JSON-RPC"),
        ("7", None, -32600, "no message of JSON-RPC"),
    ],
)
def test_a_line_that_is_no_message_is_answered_and_the_window_lives(shared: Home, line: str, about: object, code: int, told: str) -> None:
    """JSON-RPC 2.0 §5.1: whoever sends what cannot be read is told so, instead of waiting for ever."""
    window = shared.window().greet()
    assert window.process.stdin is not None
    assert window.process.stdout is not None
    window.process.stdin.write(f"\n{line}\n")
    window.process.stdin.flush()
    said = json.loads(window.process.stdout.readline())
    assert (said["id"], said["error"]["code"]) == (about, code)
    assert told in said["error"]["message"]
    assert window.ask("ping", {}) == {}


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_python_client_speaks_both_eras_through_the_front(home: Home, mode: str) -> None:
    """Issue 3 §4: stdio, both protocol eras; also through --connect to the HTTP of the same server."""
    from mcp import Client, StdioServerParameters

    words = [str(SCRIPT), "window", str(home.folder), "30"]
    async with Client(StdioServerParameters(command=sys.executable, args=words), mode=mode) as client:
        assert not (await client.call_tool("edit", {"edits": [SYDNEY]})).is_error
        url = json.loads((await client.read_resource("ke://state")).contents[0].text)["url"]  # type: ignore[union-attr]
        parameters = StdioServerParameters(command=sys.executable, args=[str(SCRIPT), "connect", url])
        async with Client(parameters, mode=mode) as far:
            listed = await far.call_tool("list_edits", {})
            assert listed.structured_content["edits"][0]["target"] == "Sydney"
            assert (await far.call_tool("rollback", {"edit_ids": ["none"]})).is_error
        async with Client(url + "/mcp", mode=mode) as direct:
            assert len((await direct.list_tools()).tools) == 9


@pytest.mark.slow
def test_initialize_is_answered_within_two_seconds_with_torch_installed(home: Home) -> None:
    """Issue 3 §4: from spawn to the answer, with the server cold and warm; a busy machine is allowed twice the SDK's own import."""
    assert importlib.util.find_spec("torch")
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import mcp.server"], check=True)
    allowed = max(2.0, 3 * (time.monotonic() - began))
    environment = {**os.environ, "KE_HOME": str(home.folder), "KE_CACHE": str(home.folder.parent), "KE_IDLE_SECONDS": "1"}
    seconds = []
    for _ in range(2):
        began = time.monotonic()
        words = [sys.executable, "-m", "ke_tools", "serve", "--model", str(home.folder)]  # no model is there to load
        process = subprocess.Popen(words, stdin=-1, stdout=-1, stderr=-1, text=True, encoding="utf-8", env=environment)
        home.processes.append(process)
        Window(process).greet()
        seconds.append(time.monotonic() - began)
    assert max(seconds) < allowed, seconds


def test_a_front_reads_nothing_heavy() -> None:
    """Brief: the front imports no mcp, pydantic or torch, or each window would pay for it."""
    code = (
        "import sys, ke_tools.servers.serve, ke_tools.servers.front;"
        "print(*({'mcp', 'pydantic', 'anyio', 'numpy', 'torch', 'asyncio'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip() == ""


# A server elsewhere ---------------------------------------------------------------------------------------------------


def test_a_window_on_a_server_elsewhere_ends_when_its_host_leaves(home: Home) -> None:
    """Each window that an IDE closes would else leave a process behind; also one that was never spoken to."""
    _, url = home.on_port()
    assert Window(home.start("connect", url)).close() == 0
    window = Window(home.start("connect", url)).greet()
    assert window.state()["url"] == url
    assert window.close() == 0


def test_a_server_elsewhere_that_cannot_be_reached_is_named_with_what_to_do(home: Home) -> None:
    """House rule 1: found, and what to do, instead of a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    window = Window(home.start("connect", url))
    window.send({"jsonrpc": "2.0", "id": 1, "method": "ping"})
    said = window.failure()
    assert window.process.returncode == 1
    assert said.startswith(f"ke-tools: E_MODEL: the server at {url}/mcp does not answer: ")
    assert "ke-tools serve --http" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("last", [{"id": 9, "method": "tools/list"}, {"method": "notifications/roots/list_changed"}])
def test_a_server_elsewhere_that_dies_is_named_with_what_to_do(home: Home, last: dict[str, Any]) -> None:
    """House rule 1: also in the middle of a session, though the host keeps standard input open."""
    server, url = home.on_port()
    window = Window(home.start("connect", url)).greet()
    server.kill()
    server.wait()
    window.send({"jsonrpc": "2.0", **last})
    said = window.failure()
    assert window.process.returncode == 1
    assert f"E_MODEL: the server at {url}/mcp does not answer: " in said
    assert "Traceback" not in said


# Places and locks -----------------------------------------------------------------------------------------------------


def test_the_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    """Issue 3 §4: unix socket, mode 0600."""
    place = Place.of(tmp_path / "home")
    held = Held.take(place)
    assert held is not None
    assert stat.S_IMODE(place.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert Held.take(place) is None
    held.withdraw()
    assert home_socket.dial(place, {}) is None
    held.let_go()
    again = Held.take(place)
    assert again is not None
    again.let_go()


def test_a_deep_home_has_its_socket_in_the_runtime_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Brief: a unix socket's path is short; two deep homes have two sockets."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")  # noqa: S108
    first, second = (Place.of(tmp_path / ("deep" * 30) / name) for name in ("a", "b"))
    assert len(os.fsencode(first.socket)) < 100
    assert first.folder.parent == Path("/tmp/ke-tools")  # noqa: S108
    assert first.socket != second.socket
    assert Place.of(tmp_path / ("deep" * 30) / "a") == first


def test_a_home_that_takes_no_files_is_named(tmp_path: Path) -> None:
    """Issue 3 §6: a read-only home gets a clear error."""
    (tmp_path / "file").touch()
    with pytest.raises(ReadOnly, match="file"):
        Held.take(Place(tmp_path / "file" / "run", tmp_path / "file"))


def test_settings_survive_the_way_to_the_server(tmp_path: Path) -> None:
    """Brief: the server has the settings of the window that started it."""
    settings = Settings.load(home=tmp_path, token_file=tmp_path / "tokens.toml", read_only=True, demonstrations=3)
    again = Settings.from_json(json.loads(json.dumps(settings.to_json())))
    assert again == settings
    assert again.sources == settings.sources


def test_beyond_this_machine_a_token_is_demanded(tmp_path: Path) -> None:
    """Issue 3 §4: HTTP binds to loopback unless told otherwise and then demands a token."""
    with pytest.raises(InvalidInput, match="token"):
        serve.run(fake.settings_of(str(tmp_path)), http="0.0.0.0:0")


@pytest.mark.parametrize("address", ["8765", "localhost:", ":8765", "localhost:99999", "localhost:http"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """Style §4: what was found and what to do."""
    with pytest.raises(InvalidInput, match="HOST:PORT"):
        doors.parse(address)


def test_a_server_elsewhere_is_named_by_its_url() -> None:
    """Issue 3 §4: --connect URL; without a path its /mcp is meant."""
    assert remote.endpoint("http://10.0.0.1:8765") == "http://10.0.0.1:8765/mcp"
    assert remote.endpoint("https://example.org/ke/mcp") == "https://example.org/ke/mcp"
    with pytest.raises(InvalidInput):
        remote.endpoint("example.org")
