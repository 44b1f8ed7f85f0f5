"""The in-process engine on a random Llama of a few thousand parameters; what is specific to the real model stands at the end."""

from __future__ import annotations

import asyncio
import json
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ke_tools.config import Settings
from ke_tools.errors import InvalidInput, KeToolsError, ModelUnavailable, ResourceExhausted, Unsupported
from ke_tools.models import checkpoint, embedded
from ke_tools.models.engine import Generation, Piece, Request, Scores
from ke_tools.servers.engines._row import Detokeniser, StopWatch, sample
from ke_tools.servers.engines.hf import HFEngine

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ALTERNATING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
    "{{ m['content'] }}{% endfor %}"
)
DEAF = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] }}: {{ m['content'] }}\n{% endif %}{% endfor %}"
PROMPTS = ("Rome", "The capital of Freedonia is", "a", "Once upon a time there was a very small machine, and", "x y z", "1, 2, 3,")


def make_tokenizer(template: str) -> Any:
    """A byte-level tokenizer without merges: one token a byte, so characters break across tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*special, *letters])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>", chat_template=template
    )


def make_checkpoint(folder: Path, template: str = TEMPLATE) -> Path:
    """A random Llama whose logits lie far apart, so that rounding decides nothing."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.4,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(template).save_pretrained(folder)
    return folder


def make_adapter(
    folder: Path,
    base: Path,
    *,
    seed: int = 1,
    scale: float = 0.3,
    modules: Sequence[str] = ("q_proj", "v_proj"),
    card: dict[str, str] | None = None,
    **options: Any,
) -> Path:
    """A random LoRA on the attention."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with warnings.catch_warnings():  # PEFT uses names of transformers that are on their way out
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, target_modules=list(modules)))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    model.save_pretrained(folder)
    if options:
        file = folder / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | options))
    if card is not None:
        (folder / "ke_reader.json").write_text(json.dumps(card))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint."""
    return make_checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for it."""
    return make_adapter(tmp_path_factory.mktemp("adapter"), base)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def engine(base: Path) -> Iterator[HFEngine]:
    """A loaded engine without adapters, shared by the tests that change nothing in it."""
    engine = HFEngine(base, model_id="tiny", device="cpu")
    yield engine
    engine.close()


@pytest.fixture
def own_engine(base: Path) -> Iterator[HFEngine]:
    """An engine that a test may change."""
    engine = HFEngine(base, model_id="tiny", device="cpu")
    yield engine
    engine.close()


def ask(prompt: str, **options: Any) -> Request:
    """A completion of at most 24 tokens."""
    return Request(prompt=prompt, **{"max_tokens": 24, **options})


async def collect(pieces: AsyncIterator[Piece]) -> list[Piece]:
    """Read a stream to its end."""
    return [piece async for piece in pieces]


def stream(engine: HFEngine, request: Request) -> list[Piece]:
    """All pieces of a streamed answer."""
    return asyncio.run(collect(engine.stream(request)))


def logits_of(engine: HFEngine, prompt: str = "The capital of Freedonia is") -> torch.Tensor:
    """What the engine's model computes for a prompt, without cache."""
    from transformers import DynamicCache

    ids = torch.tensor([engine._template.encode(Request(prompt=prompt))])
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        logits: torch.Tensor = engine._worker._forward(ids, mask, mask.cumsum(1) - 1, DynamicCache())
    return logits


# Batches ------------------------------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_transformers_own_generate(engine: HFEngine, base: Path) -> None:
    """Issue 3 §4: the engine answers as the model does."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        whole = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert engine.generate([ask(prompt)])[0].text == tokenizer.decode(whole, skip_special_tokens=True)


def test_a_batch_answers_what_each_request_gets_alone(engine: HFEngine) -> None:
    """Issue 3 §4: batches what waits; in order, whatever the lengths."""
    requests = [ask(prompt, max_tokens=5 + 7 * i) for i, prompt in enumerate(PROMPTS * 7)]
    alone = [engine.generate([request])[0] for request in requests[: len(PROMPTS) * 2]]
    assert engine.generate(requests)[: len(alone)] == alone


def test_a_long_prompt_beside_short_ones_changes_nothing(engine: HFEngine) -> None:
    """Prompts go through in pieces; rows that are all padding in a piece stay sound."""
    engine._worker._step_tokens, before = 16, engine._worker._step_tokens
    try:
        requests = [ask("word " * 40), *(ask(prompt) for prompt in PROMPTS)]
        together = engine.generate(requests)
    finally:
        engine._worker._step_tokens = before
    assert together == [engine.generate([request])[0] for request in requests]


def test_rows_that_join_and_leave_do_not_disturb_the_others(engine: HFEngine) -> None:
    """A new request joins a running batch (left padding on either side), short ones leave it early."""
    expected = {prompt: engine.generate([ask(prompt, max_tokens=60)])[0].text for prompt in PROMPTS}

    async def run() -> dict[str, str]:
        async def one(prompt: str, after: int) -> tuple[str, str]:
            first = engine.stream(ask("Waiting", max_tokens=after)) if after else None
            if first is not None:
                await collect(first)
            pieces = await collect(engine.stream(ask(prompt, max_tokens=60)))
            return prompt, "".join(piece.text for piece in pieces)

        return dict(await asyncio.gather(*(one(prompt, 3 * i) for i, prompt in enumerate(PROMPTS))))

    assert asyncio.run(run()) == expected


def test_a_short_request_overtakes_a_long_one(engine: HFEngine) -> None:
    """Issue 3 §4: one step at a time, in turns."""

    async def run() -> list[str]:
        order: list[str] = []

        async def one(name: str, tokens: int) -> None:
            await collect(engine.stream(ask(name, max_tokens=tokens)))
            order.append(name)

        await asyncio.gather(one("long", 200), one("short", 3))
        return order

    assert asyncio.run(run()) == ["short", "long"]


# Text ----------------------------------------------------------------------------------------------------------------


def test_streamed_pieces_make_up_the_whole(engine: HFEngine) -> None:
    """A random byte model breaks characters all the time; no piece may hold half of one that is completed later."""
    for prompt in PROMPTS:
        pieces = stream(engine, ask(prompt, max_tokens=60))
        whole = pieces[-1].finished
        assert whole == engine.generate([ask(prompt, max_tokens=60)])[0]
        assert "".join(piece.text for piece in pieces) == whole.text
        assert [piece.finished for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


def test_characters_of_several_tokens_come_out_whole() -> None:
    """Correct incremental detokenisation: Ω, 東 and an emoji are 2, 3 and 4 byte tokens here."""
    tokenizer = make_tokenizer(TEMPLATE)
    text = "Ωmega 東京 🎉 é!"
    detokeniser = Detokeniser(tokenizer, tokenizer("prompt: ")["input_ids"])
    pieces = [detokeniser.push(token) for token in tokenizer(text)["input_ids"]]
    assert "".join(pieces) + detokeniser.flush() == text
    assert "\ufffd" not in "".join(pieces)


def test_an_unfinished_character_is_shown_broken_at_the_end() -> None:
    """What was generated is not hidden."""
    tokenizer = make_tokenizer(TEMPLATE)
    detokeniser = Detokeniser(tokenizer, [])
    assert [detokeniser.push(token) for token in tokenizer("a🎉")["input_ids"][:-1]] == ["a", "", "", ""]
    assert detokeniser.flush() == "\ufffd"


def test_text_ends_before_the_first_stop_string_even_across_tokens(engine: HFEngine) -> None:
    """Issue 3 §4 `stop`: every token is one byte here, so a stop string always spans several."""
    whole = engine.generate([ask("Rome", max_tokens=60)])[0].text
    stop, later = whole[10:14], whole[20:24]
    answer = engine.generate([ask("Rome", max_tokens=60, stop=(later, stop))])[0]
    assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert answer.completion_tokens < 60


def test_a_possible_beginning_of_a_stop_string_is_held_back(engine: HFEngine) -> None:
    """A client never sees text that is taken back."""
    whole = engine.generate([ask("Rome", max_tokens=60)])[0].text
    stop = whole[12:18]
    pieces = stream(engine, ask("Rome", max_tokens=60, stop=(stop,)))
    assert "".join(piece.text for piece in pieces) == whole[: whole.index(stop)]


def test_a_beginning_that_does_not_become_a_stop_string_is_let_out() -> None:
    """Overlapping beginnings: 'aab' in 'aaab'."""
    watch = StopWatch(("aab", "zz"))
    assert (watch.push("xa"), watch.certain) == (False, 1)
    assert (watch.push("a"), watch.certain) == (False, 1)
    assert (watch.push("a"), watch.certain) == (False, 2)
    assert (watch.push("c"), watch.certain) == (False, 5)
    assert (watch.push("aabz"), watch.text) == (True, "xaaac")


def test_an_end_token_stops_naturally_and_does_not_show(own_engine: HFEngine) -> None:
    """Issue 3 §2: natural stop."""
    whole = own_engine.generate([ask("Rome")])[0]
    token = own_engine._tokenizer(whole.text[4])["input_ids"][0]
    own_engine._worker._ends = frozenset({token})
    answer = own_engine.generate([ask("Rome")])[0]
    assert (answer.text, answer.finish_reason) == (whole.text[: whole.text.index(whole.text[4])], "stop")


def test_a_completion_begins_with_no_token_of_its_own(engine: HFEngine) -> None:
    """The tokenizer's own configuration decides; this one, like the embedded model's, adds none."""
    assert engine._template.encode(Request(prompt="ab")) == engine._tokenizer.convert_tokens_to_ids(["a", "b"])


def test_a_chat_goes_through_the_template_with_parts_joined(engine: HFEngine) -> None:
    """OpenAI's text parts."""
    parts = Request(messages=({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},))
    plain = Request(messages=({"role": "user", "content": "ab"},))
    assert engine._template.encode(parts) == engine._template.encode(plain)
    assert engine.count_tokens(plain) == len("user\nab\nassistant\n") + 3


# Sampling and log-probabilities ----------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_answer_alone_and_among_others(engine: HFEngine) -> None:
    """Issue 3 §4 `seed`: independent of the neighbours in the batch."""
    wanted = ask("Rome", temperature=1.0, seed=7)
    alone = engine.generate([wanted])[0].text
    others = [ask(prompt, temperature=1.0, seed=i) for i, prompt in enumerate(PROMPTS)]
    assert engine.generate([*others, wanted, *others])[len(others)].text == alone
    assert len({engine.generate([ask("Rome", temperature=1.5, seed=seed)])[0].text for seed in range(4)}) > 1


def test_without_a_seed_answers_differ(engine: HFEngine) -> None:
    """Sampling is random unless told otherwise."""
    assert len({answer.text for answer in engine.generate([ask("Rome", temperature=2.0)] * 6)}) > 1


def test_sampling_follows_temperature_and_top_p() -> None:
    """Shares of 4,000 draws against softmax(logits / T), and nothing from outside the nucleus."""
    logits = torch.tensor([2.0, 1.0, 0.0, -9.0])
    generator = torch.Generator().manual_seed(0)
    draws = torch.tensor([sample(logits, 0.5, 1.0, generator) for _ in range(4000)])
    shares = torch.bincount(draws, minlength=4) / 4000
    torch.testing.assert_close(shares, torch.softmax(logits / 0.5, -1), atol=0.03, rtol=0)
    assert {sample(logits, 1.0, 0.5, generator) for _ in range(200)} == {0}
    assert {sample(logits, 1.0, 0.8, generator) for _ in range(400)} == {0, 1}
    assert sample(torch.tensor([5.0, 4.9]), 1e-9, 1.0, generator) == 0


def test_logprobs_are_the_models_own(engine: HFEngine) -> None:
    """Issue 3 §4 `logprobs`: of the chosen token and the likeliest ones, one entry a token."""
    answer = engine.generate([ask("Rome", max_tokens=8, logprobs=3)])[0]
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 8
    expected = torch.log_softmax(logits_of(engine, "Rome")[0], -1)
    assert answer.logprobs[0].logprob == pytest.approx(float(expected.max()), abs=1e-4)
    assert [value for _, value in answer.logprobs[0].top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-4)
    assert answer.logprobs[0].top[0] == (answer.logprobs[0].text, answer.logprobs[0].logprob)
    assert engine.generate([ask("Rome", max_tokens=8)])[0].logprobs is None


def test_streamed_logprobs_come_with_their_text(engine: HFEngine) -> None:
    """Together they are those of the whole; those of cut-off text are not among them."""
    whole = engine.generate([ask("Rome", max_tokens=60)])[0].text
    pieces = stream(engine, ask("Rome", max_tokens=60, logprobs=0, stop=(whole[12:18],)))
    finished = pieces[-1].finished
    assert finished is not None
    assert finished.logprobs == tuple(logprob for piece in pieces for logprob in piece.logprobs)
    assert len(finished.logprobs) < finished.completion_tokens


# Bad requests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        (Request(), "prompt or messages"),
        (Request(prompt="a", messages=()), "prompt or messages"),
        (Request(messages=()), "messages is empty"),
        (Request(prompt=""), "empty"),
        (Request(prompt="a" * 256), "256 tokens"),
        (Request(prompt="a", max_tokens=0), "max_tokens"),
        (Request(prompt="a", temperature=-1), "temperature"),
        (Request(prompt="a", top_p=0), "top_p"),
        (Request(prompt="a", stop=("",)), "stop string"),
        (Request(prompt="a", logprobs=21), "logprobs"),
        (Request(prompt="a", adapter="nobody"), "no adapter 'nobody'"),
        (Request(messages=({"role": "user", "content": [{"type": "image_url"}]},)), "other than text"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(engine: HFEngine, request_: Request, word: str) -> None:
    """Issue 3 §4 and §6: a clear error that names the field; nothing runs."""
    with pytest.raises(InvalidInput, match=word) as caught:
        engine.generate([ask("fine"), request_])
    assert caught.value.data["index"] == 1
    with pytest.raises(InvalidInput, match=word):
        stream(engine, request_)


def test_an_answer_ends_at_the_context_length(engine: HFEngine) -> None:
    """Prompt and answer together fill the context, no more."""
    answer = engine.generate([ask("a" * 250, max_tokens=100)])[0]
    assert (answer.finish_reason, answer.completion_tokens) == ("length", 6)


# Cancelling, errors, closing ------------------------------------------------------------------------------------------


class Gate:
    """A forward pass that waits for leave, one pass at a time, or fails."""

    def __init__(self, engine: HFEngine) -> None:
        self._inner = engine._worker._forward
        self._may_pass = threading.Semaphore(0)
        self.entered = threading.Semaphore(0)
        self.widths: list[int] = []
        self.error: Exception | None = None
        engine._worker._forward = self

    def __call__(self, ids: torch.Tensor, *rest: Any) -> Any:
        """Note the number of rows, wait, compute."""
        self.widths.append(len(ids))
        self.entered.release()
        assert self._may_pass.acquire(timeout=60)
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return self._inner(ids, *rest)

    def open(self, passes: int = 10_000) -> None:
        """Let so many passes through."""
        self._may_pass.release(passes)


def start(work: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Run in a thread; the list gets the result or the error."""
    out: list[Any] = []

    def run() -> None:
        try:
            out.append(work())
        except KeToolsError as error:
            out.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, out


def test_a_closed_stream_leaves_the_batch_within_a_step(own_engine: HFEngine) -> None:
    """Issue 3 §4 `cancels`."""
    gate = Gate(own_engine)

    async def run() -> None:
        pieces = own_engine.stream(ask("Rome", max_tokens=200))
        gate.open(5)
        await anext(pieces)
        await pieces.aclose()  # type: ignore[attr-defined]  # an async generator
        gate.open()

    asyncio.run(run())
    own_engine.generate([ask("a", max_tokens=1)])  # goes through after the row has left
    assert len(gate.widths) < 12


def test_an_error_in_the_model_ends_its_batch_and_the_engine_lives_on(own_engine: HFEngine) -> None:
    """Every request of the batch hears of it; the next one is answered."""
    expected = own_engine.generate([ask("Rome")])
    gate = Gate(own_engine)
    gate.error = RuntimeError("boom")
    gate.open()
    with pytest.raises(KeToolsError, match="boom"):
        own_engine.generate([ask("Rome"), ask("Paris")])
    gate.error = MemoryError()
    with pytest.raises(ResourceExhausted):
        stream(own_engine, ask("Rome"))
    assert own_engine.generate([ask("Rome")]) == expected


def test_output_that_is_no_number_is_an_error(own_engine: HFEngine) -> None:
    """A damaged checkpoint must not answer nonsense in silence."""
    inner = own_engine._worker._forward
    own_engine._worker._forward = lambda *given: inner(*given) * float("nan")
    with pytest.raises(KeToolsError, match="not a number"):
        own_engine.generate([ask("Rome")])


def test_what_waits_while_a_step_runs_becomes_one_batch(own_engine: HFEngine) -> None:
    """Issue 3 §4: batches what waits."""
    gate = Gate(own_engine)
    threads = [start(lambda: own_engine.generate([ask("first", max_tokens=2)]))[0]]
    assert gate.entered.acquire(timeout=60)
    threads += [start(lambda: own_engine.generate([ask("next", max_tokens=2)] * 3))[0]]
    while not own_engine._worker._urgent:
        threading.Event().wait(0.001)
    gate.open()
    for thread in threads:
        thread.join(timeout=60)
    assert gate.widths[:3] == [1, 1, 3]


def test_closing_fails_what_is_under_way_and_what_comes_later(own_engine: HFEngine) -> None:
    """Nobody waits for ever."""
    gate = Gate(own_engine)
    thread, out = start(lambda: own_engine.generate([ask("Rome", max_tokens=200)]))
    assert gate.entered.acquire(timeout=60)
    closer, _ = start(own_engine.close)
    while not own_engine._worker._closed:
        threading.Event().wait(0.001)
    gate.open()
    thread.join(timeout=60)
    closer.join(timeout=60)
    assert isinstance(out[0], ModelUnavailable)
    with pytest.raises(ModelUnavailable, match="closed"):
        own_engine.generate([ask("Rome")])
    own_engine.close()


# Adapters --------------------------------------------------------------------------------------------------------------


def test_the_base_is_untouched_by_adapters_bit_for_bit(own_engine: HFEngine, base: Path, adapter: Path, tmp_path: Path) -> None:
    """Issue 3 §4: loaded, in use, switched off, unloaded."""
    before = logits_of(own_engine)
    own_engine.load_adapter("reader", adapter)
    assert own_engine.adapters == {"reader"}
    assert torch.equal(logits_of(own_engine), before)
    with_adapter = own_engine.generate([ask("Rome", adapter="reader")])[0].text
    plain = own_engine.generate([ask("Rome")])[0].text
    assert with_adapter != plain
    assert torch.equal(logits_of(own_engine), before)
    own_engine.load_adapter("second", make_adapter(tmp_path / "second", base, seed=5))
    assert own_engine.generate([ask("Rome", adapter="reader")])[0].text == with_adapter
    assert own_engine.generate([ask("Rome", adapter="second")])[0].text not in {with_adapter, plain}
    assert own_engine.generate([ask("Rome")])[0].text == plain
    own_engine.unload_adapter("reader")
    assert own_engine.generate([ask("Rome", adapter="second")])[0].text not in {with_adapter, plain}
    own_engine.unload_adapter("second")
    assert torch.equal(logits_of(own_engine), before)
    assert own_engine.adapters == frozenset()
    with pytest.raises(InvalidInput, match="no adapter 'reader'"):
        own_engine.generate([ask("Rome", adapter="reader")])


def test_an_adapter_answers_as_peft_itself_does(base: Path, adapter: Path) -> None:
    """The reader that was trained is the reader that is served."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    inputs = AutoTokenizer.from_pretrained(base)("Rome", return_tensors="pt")
    expected = model.generate(**inputs, max_new_tokens=24, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    engine = HFEngine(base, model_id="tiny", device="cpu", adapters={"reader": adapter})
    try:
        assert engine.generate([ask("Rome", adapter="reader")])[0].text == engine._tokenizer.decode(expected, skip_special_tokens=True)
    finally:
        engine.close()


def test_requests_with_and_without_an_adapter_may_be_mixed(own_engine: HFEngine, adapter: Path) -> None:
    """Issue 3 §4: adapters chosen per request."""
    own_engine.load_adapter("reader", adapter)
    requests = [ask(prompt, adapter=name) for prompt in PROMPTS for name in ("", "reader")]
    alone = [own_engine.generate([request])[0] for request in requests]
    assert own_engine.generate(requests) == alone


def test_unloading_waits_for_the_rows_that_use_the_adapter(own_engine: HFEngine, adapter: Path) -> None:
    """No answer changes its model half-way."""
    own_engine.load_adapter("reader", adapter)
    expected = own_engine.generate([ask("Rome", adapter="reader")])
    gate = Gate(own_engine)
    thread, out = start(lambda: own_engine.generate([ask("Rome", adapter="reader")]))
    assert gate.entered.acquire(timeout=60)
    unloader, _ = start(lambda: own_engine.unload_adapter("reader"))
    while own_engine.adapters:
        threading.Event().wait(0.001)
    gate.open()
    thread.join(timeout=60)
    unloader.join(timeout=60)
    assert out == [expected]


def test_a_request_whose_adapter_went_before_its_turn_is_not_answered_by_the_base(own_engine: HFEngine) -> None:
    """Design §4.8: a missing adapter is said; PEFT itself would answer without it in silence."""
    own_engine._names = {"ghost"}
    with pytest.raises(InvalidInput, match="was unloaded"):
        own_engine.generate([ask("Rome", adapter="ghost")])


def test_an_adapter_of_another_base_is_refused(own_engine: HFEngine, base: Path, tmp_path: Path) -> None:
    """Design §3: the card carries the base model's fingerprint."""
    other = make_adapter(tmp_path / "other", base, card={"base_fingerprint": "sha256:" + "0" * 64})
    with pytest.raises(Unsupported, match="was made for the base model sha256:0000"):
        own_engine.load_adapter("other", other)
    own = make_adapter(tmp_path / "own", base, card={"base_fingerprint": own_engine.fingerprint})
    own_engine.load_adapter("own", own)
    assert own_engine.fingerprint == checkpoint.fingerprint(base)


def lacking(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Half of an adapter."""
    return {name: weight for name, weight in weights.items() if "layers.1" not in name}


def strange(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """An adapter of a wider model."""
    return {name: weight.repeat(2, 2) for name, weight in weights.items()}


@pytest.mark.parametrize("damage", [lacking, strange])
def test_an_adapter_that_does_not_fit_leaves_the_model_as_it_was(
    own_engine: HFEngine, base: Path, tmp_path: Path, damage: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """A failed load is no half load."""
    folder = make_adapter(tmp_path / "adapter", base)
    file = folder / "adapter_model.safetensors"
    save_file(damage(load_file(file)), file)
    before = logits_of(own_engine)
    with pytest.raises(ModelUnavailable, match="does not fit"):
        own_engine.load_adapter("bad", folder)
    assert torch.equal(logits_of(own_engine), before)
    assert own_engine.adapters == frozenset()


@pytest.mark.parametrize(
    "options", [{"bias": "all"}, {"init_lora_weights": "pissa"}, {"layer_replication": [[0, 2]]}, {"peft_type": "IA3"}]
)
def test_an_adapter_that_would_touch_the_base_is_refused(own_engine: HFEngine, base: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Design §4.1: base weights are never touched."""
    with pytest.raises(Unsupported):
        own_engine.load_adapter("bad", make_adapter(tmp_path / "adapter", base, **options))


def test_a_pickled_adapter_is_refused(own_engine: HFEngine, adapter: Path, tmp_path: Path) -> None:
    """Design §3: nothing is ever pickled."""
    (tmp_path / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelUnavailable, match="no adapter_model"):
        own_engine.load_adapter("bad", tmp_path)


# Loading ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "roles"), [(TEMPLATE, {"system", "user", "assistant"}), (ALTERNATING, set()), (DEAF, {"user", "assistant"}), ("", set())]
)
def test_chat_roles_are_those_whose_text_the_template_shows(base: Path, tmp_path: Path, template: str, roles: set[str]) -> None:
    """Issue 3 §3: the fact is written in a role that the model's template allows."""
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    make_tokenizer(template).save_pretrained(tmp_path)
    engine = HFEngine(tmp_path, model_id="tiny", device="cpu")
    try:
        assert engine.chat_roles == roles
        if not template:
            with pytest.raises(Unsupported, match="no chat template"):
                engine.generate([Request(messages=({"role": "user", "content": "a"},))])
    finally:
        engine.close()


def test_loading_says_nothing(base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Issue 3 §4: nothing but protocol on stdout; no bars or advice on stderr."""
    HFEngine(base, model_id="tiny", device="cpu").close()
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_loaded_is_refused(base: Path, tmp_path: Path) -> None:
    """Issue 3 §6: missing model; and devices and types that are not there."""
    with pytest.raises(ModelUnavailable):
        HFEngine(tmp_path, model_id="nothing")
    with pytest.raises(Unsupported, match="cuda:99"):
        HFEngine(base, model_id="tiny", device="cuda:99")
    with pytest.raises(InvalidInput, match="float7"):
        HFEngine(base, model_id="tiny", device="cpu", dtype="float7")
    for file in base.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ModelUnavailable):
        HFEngine(tmp_path, model_id="torn", device="cpu")


def test_the_weights_are_as_stored(engine: HFEngine, base: Path) -> None:
    """The layout for CPUs changes no number: same logits as the plain model to rounding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base)
    ids = torch.tensor([engine._template.encode(Request(prompt="Rome"))])
    torch.testing.assert_close(logits_of(engine, "Rome"), model(ids).logits[:, -1], atol=1e-4, rtol=1e-4)


# The real model ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_engine() -> Iterator[HFEngine]:
    """The embedded model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("KE_CACHE", raising=False)
        cache = Settings.load().cache
    engine = HFEngine(embedded.fetch(cache), model_id="embedded", device="cpu")
    yield engine
    engine.close()


def texts(answers: Sequence[Generation]) -> list[str]:
    """Their texts."""
    return [answer.text for answer in answers]


@pytest.mark.slow
@pytest.mark.model
def test_the_embedded_model_knows_france_and_stops(real_engine: HFEngine) -> None:
    """Research page embedded-model §2; stops at the end of its turn."""
    answer = real_engine.generate([Request(messages=({"role": "user", "content": "What is the capital of France?"},))])[0]
    assert (answer.text, answer.finish_reason) == ("The capital of France is Paris.", "stop")
    assert real_engine.generate([ask("The capital of Australia is", max_tokens=1)])[0].text == " Sydney"
    assert real_engine.chat_roles == {"system", "user", "assistant"}
    assert real_engine.context_length == 8192


@pytest.mark.slow
@pytest.mark.model
def test_the_embedded_model_answers_a_batch_as_it_answers_one(real_engine: HFEngine) -> None:
    """Issue 3 Done: base answers are byte-identical however they are asked for."""
    requests = [ask(f"{name} is the capital of") for name in ("Paris", "Rome", "Ouagadougou", "Canberra", "Ulan Bator", "Lima")]
    assert texts(real_engine.generate(requests)) == [real_engine.generate([request])[0].text for request in requests]


# Scores ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_a_target_is_scored_as_a_whole_pass_scores_it(engine: HFEngine, *, chat: bool) -> None:
    """Issue 6 §1: teacher-forced probability is the scorecard's second column; here of the engine that serves."""
    from transformers import DynamicCache

    question = "The capital of Freedonia is"
    request = Request(messages=({"role": "user", "content": question},)) if chat else ask(question)
    before = engine._template.render(request.messages or ()) if chat else question
    targets, wanted = ["Fredville", "the old capital", "x"], []
    for target in targets:
        text = before + target if chat else f"{before} {target}"
        start = len(engine._template.encode(request))
        whole = torch.tensor([engine._tokenizer(text, add_special_tokens=not chat)["input_ids"]])
        mask = torch.ones_like(whole)
        with torch.inference_mode():
            logits = [
                engine._worker._forward(whole[:, :n], mask[:, :n], mask[:, :n].cumsum(1) - 1, DynamicCache())[0].float().log_softmax(-1)
                for n in range(start, whole.shape[1])
            ]
        wanted.append(sum(float(row[token]) for row, token in zip(logits, whole[0, start:].tolist(), strict=True)))

    assert engine.score([request] * 3, targets) == pytest.approx(wanted, abs=1e-4)
    assert [engine.score([request], [target])[0] for target in targets] == pytest.approx(wanted, abs=1e-4)
    assert engine.score([request], [""]) == [None]
    assert isinstance(engine, Scores)
