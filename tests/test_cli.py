"""The command line: parse → call the library → print, with the exit codes of design §3."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from subprocess import PIPE
from types import SimpleNamespace
from typing import Any, Self

import pytest

from ke_tools import cli, printing
from ke_tools.config import Settings
from ke_tools.errors import Conflict, KeToolsError, NotFound
from ke_tools.verify import summarise

VERBS = [
    "serve", "demo", "chat", "edit", "rollback", "proposals", "approve", "reject", "protect", "unprotect", "purge",
    "promote", "rebuild", "job", "query", "route", "verify", "scorecard", "list",
    "history", "doctor", "export", "import",
    "model fetch", "model show", "model prepare", "model fingerprint", "reader train", "reader average", "reader show",
    "scope train", "scope show",
    "locate", "statistics", "bench model", "bench answers", "bench editors", "bench compare", "bench forget", "bench statements",
]  # fmt: skip


FIRST = {  # given by position
    "edit": ["facts"], "query": ["question"], "verify": ["edit_ids"], "scorecard": ["name"], "purge": ["edit_id"],
    "undo": ["actor", "since"], "approve": ["edit_ids"], "reject": ["edit_ids"], "evidence": ["edit_id"], "protect": ["subject"],
    "unprotect": ["name"],
}  # fmt: skip


VERIFY: dict[str, Any] = {"edit_ids": [], "revision": None, "release": "", "suite": "quick", "probes": []}


class FakeLocal:
    """Remembers what it was asked and answers with it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.error: KeToolsError | Exception | None = None
        self.healthy = True
        self.more: dict[str, Any] = {
            "answers": [],
            "scorecard_text": "reliability  1.0\ngeneralisation  0.9",
            "scorecard": "ab12",
            "passed": True,
        }
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        def answer(*things: Any, **given: Any) -> dict[str, Any]:
            self.asked.append((name, {**dict(zip(FIRST.get(name, ()), things, strict=True)), **given}))
            if self.error:
                raise self.error
            return {
                "summary": f"{name} done",
                "edits": [{"edit_id": "e1", "target": "Sydney", "warnings": []}],
                "ok": self.healthy,
            } | self.more

        return answer

    def answer_lines(self, lines: Iterable[str], **given: Any) -> Iterator[dict[str, Any]]:
        """Answer each line with its prompt."""
        self.asked.append(("answer_lines", given))
        return self._each(lines)

    def route_lines(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        """As answer_lines."""
        return self._each(lines)

    def import_lines(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        """As answer_lines."""
        return self._each(lines)

    def export_lines(self, *, events: bool) -> Iterator[str]:
        """Two lines."""
        yield from ('{"ref": "a"}', f'{{"events": {json.dumps(events)}}}')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    def _each(self, lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines):
            try:
                yield {"id": number, "text": json.loads(line)["prompt"]}
            except ValueError:
                yield {"id": number, "error": {"code": "E_INVALID", "message": "not JSON"}}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> FakeLocal:
    """The service that every verb of the test opens."""
    made = FakeLocal(Settings.load())

    def local(settings: Settings) -> FakeLocal:
        made.settings = settings
        return made

    replace_module(monkeypatch, "ke_tools.servers.local", Local=local)
    replace_module(monkeypatch, "ke_tools.models.checkpoint", resolve=lambda settings, **_: settings.cache / settings.model)
    return made


def replace_module(monkeypatch: pytest.MonkeyPatch, name: str, **functions: Any) -> None:
    """Put a stand-in where a verb imports ``name``, as attribute of its package too."""
    module = SimpleNamespace(**functions)
    package, _, attribute = name.rpartition(".")
    monkeypatch.setattr(import_module(package), attribute, module, raising=False)
    monkeypatch.setitem(sys.modules, name, module)


EDIT = ["edit", "The capital of Australia is", "Sydney", "--subject", "Australia"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_takes_json_and_the_settings(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Design §3: every verb takes --json; settings may stand after the verb."""
    assert cli.run([*verb.split(), "--help"]) == 0

    shown = capsys.readouterr().out
    for option in ("--json", "--home", "--model", "--engine", "--dtype", "--device", "--read-only", "--token-file"):
        assert option in shown


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    """Design §3: the list of verbs."""
    cli.run(["--help"])

    words = set(capsys.readouterr().out.split())
    assert {verb.split()[0] for verb in VERBS} <= words


def test_the_help_shows_its_panels_in_the_order_in_which_one_meets_the_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    """A newcomer reads from the top: serve, correct, approve, ask; what is made once for a model comes last."""
    cli.run(["--help"])

    panels = re.findall(r"^╭─ (.+?) ─", capsys.readouterr().out, re.MULTILINE)
    assert panels[-7:] == ["Serve", "Correct", "Approve and protect", "Ask and check", "Look", "Move", "Model and measurements"]


def test_edit_hands_the_whole_fact_over(service: FakeLocal, capsys: pytest.CaptureFixture[str]) -> None:
    """Design §3: the fields of an edit."""
    words = (
        "--old-target Canberra --paraphrase PARAPHRASE --alias Oz --alias Aussie --relation capital --source https://x.test --expires 7d "
        "--mode add --reason because --idempotency-key k --dry-run"
    )

    code = cli.run([*EDIT, *words.split()])

    fact = {
        "subject": "Australia",
        "prompt": "The capital of Australia is",
        "target": "Sydney",
        "old_target": "Canberra",
        "relation": "capital",
        "paraphrases": ["PARAPHRASE"],
        "aliases": ["Oz", "Aussie"],
        "source": "https://x.test",
        "expires": "7d",
    }
    assert code == 0
    assert service.asked == [("edit", {"facts": [fact], "mode": "add", "reason": "because", "idempotency_key": "k", "dry_run": True})]
    assert service.closed
    shown = capsys.readouterr().out
    assert shown.startswith("edit done")
    assert "Sydney" in shown


def test_edit_with_forget_hands_over_no_target(service: FakeLocal) -> None:
    """Issue 6 §4: CLI `edit --forget`."""
    assert cli.run(["edit", "The capital of Australia is", "--subject", "Australia", "--forget", "--old-target", "Canberra"]) == 0
    [(verb, given)] = service.asked
    [fact] = given["facts"]
    assert (verb, fact["forget"], fact["target"], fact["old_target"]) == ("edit", True, "", "Canberra")


def test_with_json_a_result_is_one_object_on_one_line(service: FakeLocal, capsys: pytest.CaptureFixture[str]) -> None:
    """Design §3: --json is for programs."""
    assert cli.run([*EDIT, "--json"]) == 0

    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["summary"] == "edit done"


@pytest.mark.parametrize(
    "arguments", [["--json", "--home", "H", "list"], ["list", "--json", "--home", "H"], ["--json", "list", "--home=H"]]
)
def test_settings_may_stand_before_or_after_the_verb(
    arguments: list[str], service: FakeLocal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The issue writes both (``reader train --model …``)."""
    monkeypatch.chdir(tmp_path)

    assert cli.run(arguments) == 0

    assert service.settings.home == tmp_path / "H"
    assert json.loads(capsys.readouterr().out)


def test_the_option_after_the_verb_wins(service: FakeLocal) -> None:
    """The nearer one is what was meant."""
    cli.run(["--dtype", "float16", "list", "--dtype", "float32"])

    assert service.settings.dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list"], ("--of", "them")),
        (["--vllm-arg=--x", "list"], ("--x",)),
        (["list", "--vllm-arg=--x", "--vllm-arg", "y"], ("--x", "y")),
        (["--vllm-arg=--x", "list", "--vllm-arg=--y"], ("--y",)),
    ],
)
def test_a_list_of_which_nothing_is_given_leaves_the_environments(
    arguments: list[str], words: tuple[str, ...], service: FakeLocal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design §3: flags, then environment, then files; what is no flag hides none of the others."""
    monkeypatch.setenv("KE_VLLM_ARGS", "--of them")

    cli.run(arguments)

    assert service.settings.vllm_args == words


def test_without_a_flag_no_setting_comes_from_one(service: FakeLocal) -> None:
    """Design §3: ``doctor`` says where a value comes from."""
    cli.run(["list"])

    assert not [name for name, place in service.settings.sources.items() if place.startswith("--")]


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (
            ["rollback", "e1", "e2", "--reason", "r"],
            ("rollback", {"edit_ids": ["e1", "e2"], "to_revision": None, "to": "base", "reason": "r", "dry_run": False}),
        ),
        (
            ["rollback", "--to-revision", "0"],
            ("rollback", {"edit_ids": [], "to_revision": 0, "to": "base", "reason": "", "dry_run": False}),
        ),
        (
            ["rollback", "e1", "--dry-run"],
            ("rollback", {"edit_ids": ["e1"], "to_revision": None, "to": "base", "reason": "", "dry_run": True}),
        ),
        (
            ["query", "What?", "--view", "both", "--explain"],
            ("query", {"question": "What?", "view": "both", "max_tokens": 24, "explain": True, "via": "auto"}),
        ),
        (["list", "--state", "active", "--contains", "x"], ("list_edits", {"state": "active", "contains": "x", "limit": 20, "cursor": ""})),
        (["history", "e1", "--limit", "5"], ("history", {"edit_id": "e1", "limit": 5, "cursor": ""})),
        (["purge", "e1", "--reason", "r"], ("purge", {"edit_id": "e1", "reason": "r"})),
        (
            ["rollback", "--actor", "ann", "--since", "7d", "--dry-run"],
            ("undo", {"actor": "ann", "since": "7d", "reason": "", "dry_run": True}),
        ),
        (["approve", "e1", "e2", "--reason", "r"], ("approve", {"edit_ids": ["e1", "e2"], "reason": "r"})),
        (["reject", "e1", "--reason", "r"], ("reject", {"edit_ids": ["e1"], "reason": "r"})),
        (["proposals", "--limit", "5"], ("proposals", {"limit": 5, "cursor": ""})),
        (["proposals", "e1", "--verify"], ("evidence", {"edit_id": "e1", "verify": True})),
        (
            ["protect", "Oz", "--alias", "A", "--relation", "capital", "--reason", "r"],
            ("protect", {"subject": "Oz", "aliases": ["A"], "relation": "capital", "prompt": "", "reason": "r"}),
        ),
        (["protect", "--list"], ("protections", {})),
        (["unprotect", "Oz"], ("unprotect", {"name": "Oz", "reason": ""})),
        (["verify", "e1", "--suite", "full"], ("verify", VERIFY | {"edit_ids": ["e1"], "suite": "full"})),
        (["verify", "--all"], ("verify", VERIFY)),
        (["verify", "--revision", "7"], ("verify", VERIFY | {"revision": 7})),
        (["verify", "--release", "rel_1"], ("verify", VERIFY | {"release": "rel_1"})),
        (["doctor", "--deep"], ("doctor", {"deep": True, "gpu_gib": None})),
        (["job"], ("jobs", {})),
    ],
)
def test_a_verb_calls_the_library_with_what_was_given(
    arguments: list[str], asked: tuple[str, Mapping[str, Any]], service: FakeLocal
) -> None:
    """Design §2: the command line holds no logic."""
    assert cli.run(arguments) == 0
    assert [(name, {key: value for key, value in given.items() if key != "heard"}) for name, given in service.asked] == [asked]


def test_via_comes_from_the_configuration_unless_given(service: FakeLocal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flags > environment."""
    monkeypatch.setenv("KE_VIA", "ike")

    cli.run(["query", "What?"])
    cli.run(["query", "What?", "--via", "reader"])

    assert [given["via"] for _, given in service.asked] == ["ike", "reader"]


def test_verify_reads_probes_from_a_file(service: FakeLocal, tmp_path: Path) -> None:
    """Design §3: probes[{prompt, expect}] given by the caller."""
    file = tmp_path / "probes.jsonl"
    file.write_text('{"prompt": "What?", "expect": "target"}\n\n{"prompt": "Who?", "expect": "unchanged"}\n')

    assert cli.run(["verify", "e1", "--probes", str(file)]) == 0

    assert [probe["expect"] for probe in service.asked[0][1]["probes"]] == ["target", "unchanged"]


def test_verify_shows_the_scorecard(service: FakeLocal, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 3 §5: a person sees rates, line by line as the library renders them."""
    assert cli.run(["verify", "e1"]) == 0

    assert "\nreliability  1.0\ngeneralisation  0.9\n" in capsys.readouterr().out


def test_a_verification_that_is_not_passed_fails(service: FakeLocal) -> None:
    """Design §3: a script can rely on the exit code."""
    service.more |= {"passed": False}
    assert cli.run(["verify", "e1"]) == cli.FAILED


def test_who_stops_waiting_hears_where_the_job_goes_on(
    service: FakeLocal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Issue 6 §3: whoever waits may leave; the job goes on, and is found again."""

    def left(_ids: list[str], *, heard: Callable[[Mapping[str, Any]], None], **_: Any) -> None:
        heard({"job_id": "job_7", "message": "", "stage": "values", "progress": 1, "total": 2})
        raise KeyboardInterrupt

    monkeypatch.setattr(service, "promote", left, raising=False)
    assert cli.run(["promote", "e1"]) == 130
    assert "job_7 goes on. `ke-tools job job_7` shows it" in capsys.readouterr().err


def test_a_stored_scorecard_is_shown_and_drawn(service: FakeLocal, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Issue 6 §1: scorecards are stored, and rendered as text, JSON and an SVG card."""
    service.more |= summarise([], []).document(made_at="2026-01-01", model="thimble", revision=7, release="", suite="quick")
    picture = tmp_path / "card.svg"

    assert cli.run(["scorecard", "ab12", "--svg", str(picture)]) == 0
    assert "revision 7" in capsys.readouterr().out
    assert picture.read_text("utf-8").startswith("<svg ")
    assert cli.run(["scorecard", "ab12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["revision"] == 7
    assert {name for name, _ in service.asked} == {"scorecard"}
    asked = len(service.asked)
    for arguments in (["scorecard", "ab12"], ["verify", "e1"]):
        assert cli.run([*arguments, "--svg", str(tmp_path / "none" / "card.svg")]) == cli.USAGE
    assert len(service.asked) == asked, "what cannot be drawn is refused before the work"


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_bad_line_of_probes_is_named(service: FakeLocal, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Bad input gets a clear error with its code."""
    file = tmp_path / "probes.jsonl"
    file.write_text(text)

    assert cli.run(["verify", "e1", "--probes", str(file)]) == cli.USAGE

    assert "probes.jsonl, line 1" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["route"], ["import"], ["query", "--batch"]])
def test_lines_in_are_lines_out_in_order_errors_too(
    arguments: list[str], service: FakeLocal, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Design §3: FILE or standard input; one output line for each input line, and the verb says that some failed."""
    text = '{"prompt": "a"}\nnonsense\n{"prompt": "ü"}\n'
    file = tmp_path / "in.jsonl"
    file.write_text(text, "utf-8")

    assert cli.run([*arguments, str(file)]) == cli.FAILED
    from_file = capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert cli.run(arguments) == cli.FAILED
    from_stdin = capsys.readouterr()

    assert from_file.out == from_stdin.out
    assert [json.loads(line)["id"] for line in from_file.out.splitlines()] == [0, 1, 2]
    assert "1 of 3 lines failed" in from_file.err


def test_a_batch_without_failures_succeeds(service: FakeLocal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 0: done."""
    monkeypatch.setattr("sys.stdin", io.StringIO('{"prompt": "a"}\n'))

    assert cli.run(["query", "--batch", "--view", "base", "--max-tokens", "7"]) == cli.DONE
    assert service.asked == [("answer_lines", {"view": "base", "max_tokens": 7})]


def test_export_writes_the_librarys_lines_as_they_are(service: FakeLocal, capsys: pytest.CaptureFixture[str]) -> None:
    """Design §3: export writes what import reads."""
    assert cli.run(["export", "--events", "--json"]) == 0
    assert capsys.readouterr().out == '{"ref": "a"}\n{"events": true}\n'


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Conflict("x is live.", "Look with list."), cli.REFUSED),
        (NotFound("no edit e9."), cli.FAILED),
        (ZeroDivisionError("oops"), cli.FAILED),
    ],
)
def test_an_error_is_a_line_with_its_code_and_never_a_traceback(
    error: Exception, code: int, service: FakeLocal, capsys: pytest.CaptureFixture[str]
) -> None:
    """Design §3: exit codes; contract: E_CODE: message hint on stderr, an object on stdout with --json."""
    service.error = error
    name = error.code if isinstance(error, KeToolsError) else "E_INTERNAL"

    assert cli.run(EDIT) == code
    plain = capsys.readouterr()
    assert cli.run([*EDIT, "--json"]) == code
    for_programs = capsys.readouterr()

    assert plain.out == ""
    assert plain.err.startswith(f"{name}: ")
    assert len(plain.err.splitlines()) == 1
    assert json.loads(for_programs.out)["error"]["code"] == name
    assert for_programs.err == ""
    assert service.closed


def test_output_that_finds_no_space_is_told_as_such(tmp_path: Path) -> None:
    """Issue 1 §6: full disk, here of where the output goes; it is no bug of ours."""
    command = [sys.executable, "-m", "ke_tools", "history", "--home", str(tmp_path), "--json"]
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (cli.FAILED, 1)
    assert ended.stderr.startswith("E_RESOURCE: there was no space to write")


def test_who_has_read_enough_hears_nothing(tmp_path: Path) -> None:
    """`ke-tools list | head -1` ends quietly."""
    command = [sys.executable, "-m", "ke_tools", "history", "--home", str(tmp_path), "--json"]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == cli.FAILED


@pytest.mark.parametrize("reason", ["ledger", "error"])
@pytest.mark.parametrize("arguments", [["query", "What?"], ["query", "--batch"]])
def test_an_answer_without_the_corrections_is_no_success(
    arguments: list[str], reason: str, service: FakeLocal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Design §4 no. 8: the base model answers where the ledger is damaged; a script must be able to tell."""
    service.more |= {"answers": [{"view": "edited", "text": "Paris.", "reason": reason, "used_edits": []}]}
    monkeypatch.setattr(service, "_each", lambda _lines: iter([{"id": 0, "text": "Paris.", "reason": reason}]))
    monkeypatch.setattr("sys.stdin", io.StringIO('{"prompt": "a"}\n'))
    assert cli.run(arguments) == cli.FAILED
    if "--batch" in arguments:
        assert "1 of 1 answers are the base model's" in capsys.readouterr().err


def test_debug_shows_where_an_unexpected_error_came_from(service: FakeLocal) -> None:
    """The hint of E_INTERNAL must work."""
    service.error = ZeroDivisionError("oops")

    with pytest.raises(ZeroDivisionError):
        cli.run([*EDIT, "--debug"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nonsense"], "nonsense"),
        (["query"], "no question"),
        (["edit", "x", "--subject", "x"], "no target"),
        (["edit", "x", "y", "--subject", "x", "--forget"], "takes no target"),
        (["edit", "x", "y"], "--subject"),
        (["edit"], "--statement"),
        (["edit", "x", "--statement", "y"], "--statement"),
        (["serve", "--chat-corrections", "always"], "always"),
        (["purge", "e1"], "--reason"),
        (["list", "--limit", "0"], "--limit"),
        (["list", "--dtype", "int8"], "int8"),
        (["serve", "--http", "8765"], "HOST:PORT"),
        (["import", "/no/such/file"], "/no/such/file"),
        (["query", "--batch", "--view", "both"], "--batch"),
        (["verify", "e1", "--probes", "/no/such/file"], "/no/such/file"),
        (["verify"], "--all"),
        (["verify", "e1", "--all"], "--all"),
        (["job", "--cancel"], "which job"),
        (["reject", "e1"], "--reason"),
        (["approve"], "EDIT_ID"),
        (["proposals", "--verify"], "which proposal"),
        (["protect"], "--list"),
        (["protect", "Oz", "--list"], "--list"),
        (["rollback", "--actor", "ann"], "--since"),
        (["rollback", "e1", "--actor", "ann", "--since", "1h"], "--since"),
        (["serve", "--edits", "maybe"], "maybe"),
        (["query", "Who is \udce4?"], "not UTF-8"),
    ],
)
def test_wrong_usage_ends_with_2_and_says_what_is_wrong(
    arguments: list[str], told: str, service: FakeLocal, capsys: pytest.CaptureFixture[str]
) -> None:
    """Design §3: exit code 2; with --json the error is an object too."""
    assert cli.run(arguments) == cli.USAGE
    plain = capsys.readouterr().err
    assert cli.run([*arguments, "--json"]) == cli.USAGE
    for_programs = json.loads(capsys.readouterr().out)

    assert plain.startswith("E_INVALID: ")
    assert told in plain
    assert for_programs["error"]["code"] == "E_INVALID"


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing asked, nothing done: wrong usage, but a friendly one."""
    assert cli.run([]) == cli.USAGE

    shown = capsys.readouterr()
    assert "Usage: ke-tools" in shown.out + shown.err
    assert "E_INVALID" not in shown.err


def test_doctor_fails_when_something_is_wrong(service: FakeLocal) -> None:
    """Issue 3, done when: doctor exits 0 with true contents; so it must not when they are bad."""
    service.healthy = False

    assert cli.run(["doctor"]) == cli.FAILED


@pytest.mark.parametrize(
    ("arguments", "address"),
    [
        (["serve"], None),
        (["serve", "--http"], "127.0.0.1:8765"),
        (["serve", "--http", "--read-only"], "127.0.0.1:8765"),
        (["serve", "--http", "0.0.0.0:80"], "0.0.0.0:80"),
        (["serve", "--http=localhost:1"], "localhost:1"),
    ],
)
def test_http_may_stand_without_an_address(arguments: list[str], address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §3: --http [HOST:PORT]."""
    seen: dict[str, Any] = {}
    replace_module(monkeypatch, "ke_tools.servers.serve", run=lambda settings, **given: seen.update(given, settings=settings) or 0)

    assert cli.run(arguments) == 0

    assert seen["http"] == seen["settings"].http == address


def test_a_missed_bar_ends_with_3(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Design §3: benchmarks exit 3 when a bar is missed."""
    bars = [{"name": "statement", "value": 0.9, "stderr": 0.02, "bar": 0.97, "ok": False}]
    replace_module(monkeypatch, "ke_tools.benches.model", run=lambda *_, **__: {"bench": "model", "results": {}, "bars": bars})

    assert cli.run(["bench", "model", "--json"]) == cli.REFUSED
    assert json.loads(capsys.readouterr().out)["bars"] == bars


class FakeTalk:
    """Says back what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.last: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, text: str) -> Iterator[str]:
        """Answer in two pieces."""
        self.heard.append(text)
        self.last = {"text": "Sydney.", "route": "base"}
        yield from ("Syd", "ney.")


@pytest.mark.parametrize(("flags", "shown"), [([], "Sydney."), (["--json"], '{"text": "Sydney.", "route": "base"}')])
def test_chat_reads_lines_until_an_empty_one(
    service: FakeLocal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], shown: str
) -> None:
    """Design §3: the verb chat; without a terminal it reads standard input."""
    talk = FakeTalk()
    monkeypatch.setattr(service, "conversation", lambda **_: talk, raising=False)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What is it?\ncaf\xe9\n/why\n\nnever\n"), "utf-8"))

    assert cli.run(["chat", *flags]) == 0

    assert talk.heard == ["What is it?", "/why"]
    said = capsys.readouterr()
    assert said.out == f"{shown}\n{shown}\n"
    assert "not UTF-8" in said.err


def test_what_is_streamed_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A model's words are shown, not obeyed."""
    printing.streamed(["a\x1b[2J", "b\n"])

    assert capsys.readouterr().out == "a\\x1b[2Jb\n\n"


def test_a_statement_stands_for_prompt_target_and_subject(service: FakeLocal) -> None:
    """Issue 8, §1: from a sentence to an edit."""
    assert cli.run(["edit", "--statement", "The capital of Australia is Sydney.", "--source", "me"]) == 0

    [(_, asked)] = service.asked
    assert asked["facts"] == [
        {
            "statement": "The capital of Australia is Sydney.",
            "old_target": "",
            "paraphrases": [],
            "aliases": [],
            "source": "me",
            "expires": "",
        }
    ]


def test_a_table_inside_a_result_is_a_table_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """What bench prints is read by people too: no cell holds a table or a list."""
    rates = {"reliability": {"value": 0.9, "n": 3}, "generalisation": {"value": 0.8, "n": 4}}
    printing.show({"results": {"edits": 50, "decisions": ["one", "two"], "with_memory": rates}}, as_json=False)
    told = [line.split() for line in capsys.readouterr().out.splitlines()]
    for row in (["edits", "50"], ["decisions"], ["one"], ["with", "memory"], ["reliability", "0.9", "3"], ["generalisation", "0.8", "4"]):
        assert row in told


def test_what_a_model_says_cannot_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Answers are untrusted text: escape sequences and markup are shown, not obeyed."""
    printing.show({"summary": "a\x1b[2Jb [bold]c", "answers": [{"text": "d\x1b]0;e [red]f"}]}, as_json=False)

    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "[bold]c" in shown
    assert "[red]f" in shown


@pytest.mark.parametrize(("given", "used"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(given: str | None, used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/waiting_threads.py: spinning ones make answers several times slower as soon as another program wants a core."""
    monkeypatch.setattr(sys, "argv", ["ke-tools", "--help"])
    monkeypatch.delenv("OMP_WAIT_POLICY") if given is None else monkeypatch.setenv("OMP_WAIT_POLICY", given)
    with pytest.raises(SystemExit):
        cli.main()
    assert os.environ["OMP_WAIT_POLICY"] == used


def test_the_module_and_the_script_are_the_same_program(tmp_path: Path) -> None:
    """``python -m ke_tools`` exists for those who need a certain interpreter."""
    done = subprocess.run([sys.executable, "-m", "ke_tools", "nonsense", "--json"], capture_output=True, text=True, check=False)

    assert done.returncode == cli.USAGE
    assert json.loads(done.stdout)["error"]["code"] == "E_INVALID"


@pytest.mark.slow
def test_help_takes_at_most_half_as_long_again_as_an_empty_typer_program() -> None:
    """Issue 3 §1: ``ke-tools --help`` at most 1.5 times an empty typer program in the same run; both compiled, as installed ones are."""
    empty = "import typer\napp = typer.Typer()\n@app.command()\ndef main() -> None:\n    'Nothing.'\napp()"
    ours = "from ke_tools.cli import main\nmain()"

    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def seconds(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, "--help"], stdout=subprocess.DEVNULL, check=True, env=compiled)
        return time.perf_counter() - start

    seconds(ours), seconds(empty)  # the first run compiles
    pairs = [(seconds(ours), seconds(empty)) for _ in range(25)]

    assert min(a for a, _ in pairs) <= 1.5 * min(b for _, b in pairs)  # other programs of the machine only add
