"""Configuration: flags > environment > file in the home > file of the user > defaults (design §3)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ke_tools.config import Settings, user_folder
from ke_tools.errors import InvalidInput


def write(path: Path, text: str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home named by the environment."""
    monkeypatch.setenv("KE_HOME", str(tmp_path / "ke-home"))
    return tmp_path / "ke-home"


def test_without_anything_the_platforms_folders_and_the_embedded_model_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §3: --home defaults to the user's data folder, KE_CACHE to the cache folder."""
    monkeypatch.setattr("sys.platform", "linux")
    user = Path(os.environ["HOME"])

    settings = Settings.load()

    assert settings == Settings(home=user / ".local/share/ke-tools", cache=user / ".cache/ke-tools")
    assert settings.model == "embedded"
    assert set(settings.sources.values()) == {"default"}


def test_loading_makes_no_folder(home: Path) -> None:
    """Contract: loading touches nothing, so that --help and a read-only machine work."""
    Settings.load()

    assert not home.exists()
    assert not Path(os.environ["HOME"]).exists()


def test_a_flag_beats_the_environment_beats_the_homes_file_beats_the_users_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §3, the order of sources; each value says where it came from, for doctor."""
    users = write(user_folder("config") / "ke-tools.toml", 'model = "users"\ndtype = "float16"\ndevice = "cpu"\nengine = "hf"\n')
    homes = write(home / "ke-tools.toml", 'model = "homes"\ndtype = "bfloat16"\ndevice = "mps"\n')
    monkeypatch.setenv("KE_MODEL", "environments")
    monkeypatch.setenv("KE_DTYPE", "float32")

    settings = Settings.load(model="flags")

    assert (settings.model, settings.dtype, settings.device, settings.engine) == ("flags", "float32", "mps", "hf")
    assert {name: settings.sources[name] for name in ("home", "model", "dtype", "device", "engine", "via")} == {
        "home": "KE_HOME",
        "model": "--model",
        "dtype": "KE_DTYPE",
        "device": str(homes),
        "engine": str(users),
        "via": "default",
    }


def test_the_current_directory_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Design §3: an MCP server starts in the user's project, whose files are not its configuration."""
    write(tmp_path / "project" / "ke-tools.toml", 'model = "evil"\n')
    monkeypatch.chdir(tmp_path / "project")

    assert Settings.load().model == "embedded"


def test_the_users_file_may_name_the_home_and_its_relative_paths_start_from_the_file(tmp_path: Path) -> None:
    """A path in a file must mean the same wherever ke-tools is started."""
    folder = user_folder("config")
    write(folder / "ke-tools.toml", 'home = "here"\ntoken_file = "tokens.toml"\nmodel = "./checkpoint"\n')

    settings = Settings.load()

    assert settings.home == folder / "here"
    assert settings.token_file == folder / "tokens.toml"
    assert settings.model == str(folder / "checkpoint")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("modle = 'x'", "modle"),
        ("home = '/elsewhere'", "home"),  # the file lies in the home: it cannot say where that is
        ("http = '127.0.0.1:1'", "http"),  # a client that starts `serve` speaks on stdio
        ("[model]\nname = 'x'", "model"),
        ("dtype = 'int8'", "int8"),
        ("demonstrations = 1000", "1000"),
        ("demonstrations = true", "True"),
        ('edits = "later"', "later"),
        ("edits_per_minute = -1", "-1"),
        ('tenant = "a/b"', "a/b"),
        ("read_only = 'maybe'", "maybe"),
        ("device = 'gpu'", "gpu"),
        ("model = ''", "model"),
        ("model = ", "not TOML"),
    ],
)
def test_a_file_that_means_nothing_is_refused_by_name_and_key(home: Path, text: str, named: str) -> None:
    """Contract: unknown keys and bad values are InvalidInput naming the file, the key and what is known."""
    path = write(home / "ke-tools.toml", text)

    with pytest.raises(InvalidInput, match=r"ke-tools\.toml") as caught:
        Settings.load()

    assert str(path) in caught.value.message
    assert named in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(("word", "meant"), [("1", True), ("YES", True), ("on", True), ("0", False), ("false", False), ("", False)])
def test_a_switch_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch, word: str, meant: bool) -> None:
    """An empty variable is an unset one."""
    monkeypatch.setenv("KE_READ_ONLY", word)

    assert Settings.load().read_only is meant


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract: a bad value names its place."""
    monkeypatch.setenv("KE_ENGINE", "llama")

    with pytest.raises(InvalidInput, match=r"KE_ENGINE: engine = 'llama'.*Expected one of hf"):
        Settings.load()


@pytest.mark.parametrize("address", ["8765", "127.0.0.1", "a b:1", "http://x:1", ":80"])
def test_an_address_is_host_and_port(address: str) -> None:
    """Design §3: --http HOST:PORT."""
    with pytest.raises(InvalidInput, match="HOST:PORT"):
        Settings.load(http=address)


def test_an_unreadable_file_is_an_error_and_not_silently_skipped(home: Path) -> None:
    """Failure paths are real: a folder of that name, or no UTF-8."""
    home.mkdir()
    (home / "ke-tools.toml").write_bytes(b"model = '\xff'")

    with pytest.raises(InvalidInput, match="cannot be read"):
        Settings.load()


def test_doctor_gets_values_with_their_sources(home: Path) -> None:
    """Design §3: doctor prints the result."""
    shown = Settings.load(read_only=True).as_dict()

    assert shown["home"] == {"value": str(home), "source": "KE_HOME"}
    assert shown["read_only"] == {"value": True, "source": "--read-only"}
    assert "sources" not in shown


@pytest.mark.parametrize("written", ["vllm_args = ['--max-loras', '4']", "vllm_args = '--max-loras 4'"])
def test_arguments_for_vllm_are_a_list_or_what_a_shell_would_read(home: Path, written: str) -> None:
    """Issue 7, §1: extra flags by a setting."""
    write(home / "ke-tools.toml", f'{written}\nvllm = "env/bin/vllm"\n')

    settings = Settings.load()

    assert settings.vllm_args == ("--max-loras", "4")
    assert settings.vllm == str(home / "env/bin/vllm")
    assert Settings.from_json(settings.to_json()) == settings
    assert Settings.load(vllm_args=["--x, y"], vllm="vllm").vllm_args == ("--x, y",)


@pytest.mark.parametrize("flags", [{"vllm_args": [""]}, {"vllm_args": 'a "b'}, {"vllm": " "}])
def test_what_cannot_be_arguments_or_a_program_is_refused(flags: dict[str, object]) -> None:
    """Contract: a bad value names its place."""
    with pytest.raises(InvalidInput, match="--vllm"):
        Settings.load(**flags)


def test_edits_are_planned_with_the_model_and_where_it_is_unless_told_otherwise(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 7, §5: --edit-model and --edit-device; every source may say them, and another process of ours hears of them."""
    assert (Settings.load().edited, Settings.load().planned_on) == ("embedded", "auto")
    assert (Settings.load(model="a/b", device="cpu").edited, Settings.load(device="cpu").planned_on) == ("a/b", "cpu")
    file = write(home / "ke-tools.toml", 'engine = "vllm"\nedit_model = "./twin"\n')
    monkeypatch.setenv("KE_EDIT_DEVICE", "cuda:1")
    settings = Settings.load(model="a/b")
    assert (settings.edited, settings.planned_on) == (str(home / "twin"), "cuda:1")
    assert (settings.model, settings.device) == ("a/b", "auto")
    assert (settings.sources["edit_model"], settings.sources["edit_device"]) == (str(file), "KE_EDIT_DEVICE")
    assert Settings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "hf plans edits with the model that it serves"),
        ({"engine": "vllm", "upstream": "http://127.0.0.1:9"}, "--upstream has no weights to edit"),
    ],
)
def test_a_twin_is_of_the_engine_vllm_alone(home: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, str], said: str) -> None:
    """Issue 7, §5: where nothing else is served than what edits are planned with, it is refused with the reason."""
    monkeypatch.setenv("KE_EDIT_MODEL", "a/twin")
    with pytest.raises(InvalidInput, match=rf"KE_EDIT_MODEL: edit_model = 'a/twin' .*{said}") as caught:
        Settings.load(**more)
    assert "--edit-model" in caught.value.hint
    assert not home.exists()


@pytest.mark.parametrize("nearer", [{"engine": "hf"}, {"upstream": "http://127.0.0.1:9"}])
def test_a_file_names_a_twin_for_its_own_engine_alone(home: Path, nearer: dict[str, str]) -> None:
    """Flags > environment > files: who runs the model otherwise for once need not change the file for it."""
    write(home / "ke-tools.toml", 'engine = "vllm"\nedit_model = "a/twin"\nedit_device = "cpu"\n')
    assert Settings.load().edited == "a/twin"
    settings = Settings.load(**nearer)
    assert (settings.edit_model, settings.sources["edit_model"], settings.planned_on) == (None, "default", "cpu")
    with pytest.raises(InvalidInput, match="--edit-model"):
        Settings.load(edit_model="a/twin", **nearer)


def test_a_home_that_runs_another_engine_has_no_twin_of_the_users_file(home: Path) -> None:
    """The same from one file to the other."""
    write(user_folder("config") / "ke-tools.toml", 'engine = "vllm"\nedit_model = "a/twin"\n')
    assert Settings.load().edited == "a/twin"
    write(home / "ke-tools.toml", 'engine = "hf"\n')
    assert Settings.load().edit_model is None


def test_a_device_to_edit_on_is_checked_as_any(home: Path) -> None:
    """Issue 7, §5, bad input."""
    with pytest.raises(InvalidInput, match=r"--edit-device: edit_device = 'gpu'"):
        Settings.load(edit_device="gpu")
