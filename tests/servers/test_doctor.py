"""What the doctor says of a home: well, damaged, purged, unreadable; and that it lives through all of it."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apsw
import pytest

from ke_tools.config import Settings
from ke_tools.facts import Edit, Fact
from ke_tools.memory.ledger import Ledger
from ke_tools.memory.scope import Scope
from ke_tools.servers import doctor
from ke_tools.servers.service import Service, open_service
from ke_tools.testing import HashingEmbedder, thimble_path

Nobody = Callable[[], AbstractContextManager[None]]

SHALLOW = ["ledger", "model", "memory", "disk", "releases"]
DEEP = [*SHALLOW, "ledger audit", "scope index", "model weights"]
FREEDONIA = Fact(subject="Freedonia", prompt="The capital of Freedonia is", target="Sylvania City")
BAKERY = Fact(subject="our bakery", prompt="The baker of our bakery is", target="Ida")
GIGABYTE = 10**9


@pytest.fixture
def open_home(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Open services on one home and an empty cache."""
    opened: list[Service] = []

    def make(**given: Any) -> Service:
        opened.append(open_service(Settings.load(home=str(tmp_path / "home"), cache=str(tmp_path / "cache"), **given)))
        return opened[-1]

    yield make
    for service in opened:
        service.close()


@pytest.fixture
def ledger_file(tmp_path: Path) -> Path:
    """Where the home's ledger lies."""
    return tmp_path / "home" / "ledger.db"


def write(path: Path, *facts: Fact) -> list[Edit]:
    """Record facts, and close the ledger again."""
    with Ledger(path) as ledger:
        return ledger.edit("local", facts, actor="ann")


def examine(settings: Settings) -> dict[str, Any]:
    """Open a home, examine it in full and close it."""
    service = open_service(settings)
    try:
        return doctor.examine(service, deep=True)
    finally:
        service.close()


def execute(path: Path, *statements: str) -> None:
    """Change a ledger behind its back."""
    db = apsw.Connection(str(path))
    for statement in statements:
        db.execute(statement)
    db.close()


def bad(report: dict[str, Any]) -> dict[str, str]:
    """What the checks that are not well say, by name."""
    assert report["ok"] == all(check["ok"] for check in report["checks"])
    return {check["name"]: check["detail"] for check in report["checks"] if not check["ok"]}


def detail(report: dict[str, Any], name: str) -> str:
    """What a check that is well says."""
    (check,) = (check for check in report["checks"] if check["name"] == name)
    assert check["ok"], check["detail"]
    return str(check["detail"])


def test_a_healthy_home_is_well_and_each_check_says_what_it_looked_at(open_home: Callable[..., Service], ledger_file: Path) -> None:
    """Issue 3, done when: `ke-tools doctor --deep` exits 0 with true contents."""
    write(ledger_file, FREEDONIA)

    report = doctor.examine(open_home(), deep=True)

    assert [check["name"] for check in report["checks"]] == DEEP
    assert (bad(report), report["summary"], report["revision"]) == ({}, "All 8 checks are well.", 1)
    assert detail(report, "ledger").startswith("revision 1, 1 live edits of 1 tenants, in ")
    assert "hash chain" in detail(report, "ledger audit")
    assert "1 live edits, each named by its own prompt; 0 of them in the vector index" in detail(report, "scope index")
    assert "not fetched" in detail(report, "model weights")
    assert report["versions"]["apsw"][0].isdigit()


def test_a_shallow_examination_reads_no_log_and_hashes_nothing(open_home: Callable[..., Service]) -> None:
    """Without ``--deep`` it takes an instant, whatever the ledger's size."""
    report = doctor.examine(open_home(), deep=False)

    assert [check["name"] for check in report["checks"]] == SHALLOW
    assert report["ok"]


def test_an_edit_found_by_likeness_is_looked_for_by_its_vector(open_home: Callable[..., Service], ledger_file: Path) -> None:
    """Issue §3: every index is compared with the log; the vectors are one."""
    write(ledger_file, FREEDONIA, BAKERY)
    service = open_home()
    service._scope = Scope(service.ledger, HashingEmbedder())

    report = doctor.examine(service, deep=True)

    assert "2 live edits, each named by its own prompt; 1 of them in the vector index" in detail(report, "scope index")


def test_an_edit_that_no_question_can_reach_needs_attention(open_home: Callable[..., Service], ledger_file: Path) -> None:
    """From the command line the scope was derived just now; what can be wrong is what the log makes of it."""
    write(ledger_file, *(Fact(subject=f"Holm{n}", prompt=f"Mira Holm{n}gren works as", target="a baker") for n in "abcdefg"))

    told = bad(doctor.examine(open_home(), deep=True))

    assert told.keys() == {"scope index"}
    assert told["scope index"].count("is not named by its own prompt") == 5
    assert told["scope index"].endswith("; and 2 more")


def test_a_damaged_page_of_the_ledger_is_told(open_home: Callable[..., Service], ledger_file: Path) -> None:
    """Issue §6: corrupt ledger page."""
    write(ledger_file, *(Fact(subject=f"S{n}", prompt=f"The baker of S{n} is", target="x" * 400) for n in range(40)))
    whole = ledger_file.read_bytes()
    assert len(whole) > 20 * 4096
    ledger_file.write_bytes(whole[:4096] + b"\xa5" * (len(whole) - 4096))

    report = doctor.examine(open_home(), deep=True)

    assert bad(report).keys() == {"ledger", "releases", "ledger audit", "scope index"}
    assert report["summary"] == "Something needs attention: ledger, releases, ledger audit, scope index."


@pytest.mark.parametrize(
    ("statements", "told"),
    [
        (("DROP TRIGGER changes_stay", "UPDATE changes SET standing = 'bogus'"), "gives ed_[0-9a-f]{16} the unknown standing 'bogus'"),
        (("UPDATE edits SET words = 'other'",), "projection: the table edits shows ed_"),
        (("DROP TRIGGER events_stay",), "the trigger events_stay is missing"),
        (("DROP INDEX names_of_edit",), "the index names_of_edit is missing"),
    ],
)
def test_what_was_altered_is_named(open_home: Callable[..., Service], ledger_file: Path, statements: tuple[str, ...], told: str) -> None:
    """Issue §3: `ke-tools doctor --deep` reports any difference; never "this is a bug" for a file that somebody altered."""
    write(ledger_file, FREEDONIA)
    execute(ledger_file, *statements)

    assert re.search(told, bad(doctor.examine(open_home(), deep=True))["ledger audit"])


def test_a_purged_payload_is_said_as_purged(open_home: Callable[..., Service], ledger_file: Path) -> None:
    """Issue §3: a later purge can erase a payload and `doctor` says "purged", not "broken"."""
    (gone, _) = write(ledger_file, FREEDONIA, BAKERY)
    service = open_home()
    service._scope = Scope(service.ledger, HashingEmbedder())
    service.ledger.purge("local", gone.id, actor="ann", reason="asked for")

    report = doctor.examine(service, deep=True)

    assert bad(report) == {}
    assert detail(report, "ledger audit").endswith("1 payloads purged")
    assert "1 live edits" in detail(report, "ledger")


def test_a_purge_that_left_the_text_elsewhere_needs_attention(open_home: Callable[..., Service], ledger_file: Path) -> None:
    """Issue §3: whoever purged a text must hear that it still stands in the file."""
    write(ledger_file, FREEDONIA)
    execute(ledger_file, "DELETE FROM payloads")

    told = bad(doctor.examine(open_home(), deep=True))

    assert told.keys() == {"ledger audit"}
    assert "what event 1 said was purged, but the table edits still shows it" in told["ledger audit"]


def test_a_ledger_of_another_program_leaves_the_other_checks(open_home: Callable[..., Service], ledger_file: Path) -> None:
    """A home that cannot be read is what a doctor is called for."""
    ledger_file.parent.mkdir()
    execute(ledger_file, "CREATE TABLE theirs (x)")

    report = doctor.examine(open_home(), deep=True)

    assert bad(report).keys() == {"ledger", "releases", "ledger audit", "scope index"}
    assert "not a ledger of ke-tools" in bad(report)["ledger"]
    assert report["revision"] == 0


def test_a_home_that_takes_no_writes_is_told(nobody: Nobody) -> None:
    """Design §4 no. 8: its corrections act, but whoever wants to make another must hear why that cannot be."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), cache=Path(folder) / "cache")
        write(settings.home / "ledger.db", FREEDONIA)
        assert bad(examine(settings)) == {}
        (settings.home / "ledger.db").chmod(0o444)
        settings.home.chmod(0o555)
        with nobody():
            told = bad(examine(settings))
        settings.home.chmod(0o700)

    assert told.keys() == {"ledger"}
    assert told["ledger"].startswith("1 live edits act, but no fact can be corrected: E_READ_ONLY: ")


def newer(home: Path) -> None:
    """Make a home of a later version."""
    write(home / "ledger.db", FREEDONIA)
    execute(home / "ledger.db", "PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("make", "code"),
    [(newer, "E_UNSUPPORTED"), (Path.touch, "E_INVALID"), (lambda home: (home / "ledger.db").mkdir(parents=True), "E_INVALID")],
    ids=["newer version", "home is a file", "ledger is a folder"],
)
def test_a_home_that_cannot_be_opened_is_a_failed_check(
    open_home: Callable[..., Service], ledger_file: Path, make: Callable[[Path], None], code: str
) -> None:
    """Issue §3: what a doctor is called for must not be what it dies of."""
    make(ledger_file.parent)

    report = doctor.examine(open_home(), deep=True)

    assert bad(report).keys() == {"ledger", "releases", "ledger audit", "scope index"}
    assert bad(report)["ledger"].startswith(f"{code}: ")


def test_a_home_that_may_not_be_entered_is_told(nobody: Nobody) -> None:
    """Issue §6: whoever may not read a home learns so, of every check that needs it."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own may not be entered either
        Path(folder).chmod(0o755)
        settings = Settings(home=Path(folder) / "home", cache=Path(folder) / "cache")
        write(settings.home / "ledger.db", FREEDONIA)
        assert bad(examine(settings)) == {}  # nor may Python's, so that everything is imported now
        settings.home.chmod(0)
        with nobody():
            told = bad(examine(settings))
        settings.home.chmod(0o700)

    assert told.keys() == {"ledger", "releases", "ledger audit", "scope index"}
    assert f"{settings.home} takes no new files" in told["ledger"]


def test_a_check_that_breaks_is_a_failed_check_and_leaves_the_others(
    open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A doctor that dies is no doctor."""

    def broken(_path: Path) -> None:
        raise ZeroDivisionError("no such disk")

    monkeypatch.setattr(shutil, "disk_usage", broken)

    report = doctor.examine(open_home(), deep=True)

    assert bad(report) == {"disk": "this could not be checked: ZeroDivisionError: no such disk"}
    assert [check["name"] for check in report["checks"]] == DEEP
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(("free", "is_enough"), [(GIGABYTE, True), (50_000_000, False)])
def test_little_disk_needs_attention(
    open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, free: int, *, is_enough: bool
) -> None:
    """Issue §6: full disk; told before it happens."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=free))

    report = doctor.examine(open_home(), deep=False)

    assert ("disk" not in bad(report)) is is_enough
    assert f"{free / GIGABYTE:.1f} GB free" in report["checks"][3]["detail"]


def test_weights_that_changed_on_disk_are_told(open_home: Callable[..., Service], tmp_path: Path) -> None:
    """The fingerprint that answers and measurements carry is that of the weights that are there."""
    model = tmp_path / "model"
    shutil.copytree(thimble_path(), model)
    service = open_home(model=str(model))
    assert detail(doctor.examine(service, deep=True), "model weights").startswith("sha256:")
    (weights,) = model.glob("*.safetensors")
    before = weights.stat()
    with weights.open("r+b") as file:  # same size, time and inode: only reading tells
        file.seek(-64, os.SEEK_END)
        file.write(b"\x11" * 64)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))

    told = bad(doctor.examine(service, deep=True))

    assert told.keys() == {"model weights"}
    assert "changed on disk" in told["model weights"]


def test_a_model_that_is_not_there_is_told(open_home: Callable[..., Service], tmp_path: Path) -> None:
    """Issue §6: missing model."""
    told = bad(doctor.examine(open_home(model=str(tmp_path / "nowhere")), deep=True))

    assert told.keys() == {"model", "model weights"}
    assert told["model"].startswith("E_MODEL")


@pytest.mark.parametrize("engine", ["hf", "vllm"])
def test_a_model_of_the_hub_that_is_not_here_is_told_and_not_fetched(
    open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """Who asks how things stand waits for no gigabytes."""

    def fetched(*_: Any, **__: Any) -> Path:
        raise AssertionError

    monkeypatch.setattr("ke_tools.models.checkpoint._from_hub", fetched)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    report = doctor.examine(open_home(model="nobody/has-this", engine=engine), deep=True)
    assert bad(report) == {}
    assert "nobody/has-this is not fetched yet" in detail(report, "model")
    assert "not fetched" in detail(report, "model weights")


def test_every_setting_comes_with_its_origin(open_home: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Design §3: each value says where it came from."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "ke-tools.toml").write_text("demonstrations = 3\n")
    monkeypatch.setenv("KE_VIA", "ike")

    settings = doctor.examine(open_home(), deep=False)["settings"]

    assert settings["home"]["value"] == str(tmp_path / "home")
    assert {name: settings[name]["value"] for name in ("demonstrations", "via", "engine")} == {
        "demonstrations": "3",
        "via": "ike",
        "engine": "hf",
    }
    assert settings["demonstrations"]["from"].endswith("ke-tools.toml")
    assert settings["via"]["from"] == "KE_VIA"
    assert settings["engine"]["from"] == "default"
