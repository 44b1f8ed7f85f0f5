"""A program for vLLM's environment: the model compiled by inductor, with places behind a block that a codebook is written into and out of.

Without LoRA, which vLLM's CPU build does not compile with, no request names an adapter: this program says each token's slot itself.
Reads ``{"model", "book", "room", "texts"}`` from its standard input and prints one line of JSON as the last.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from ke_tools_vllm.codebook import Book
from ke_tools_vllm.places import SETTING, Places, put_in, room_of
from vllm import LLM, SamplingParams
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

SLOTS, TOKENS, NOBODY = 2, 2048, -1


def said(llm: LLM, texts: list[list[int]]) -> list[list[float]]:
    """The log-probability of each token behind those before it, all texts in one batch."""
    asked = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    answers = llm.generate([{"prompt_token_ids": text} for text in texts], asked, use_tqdm=False)
    return [
        [row[token].logprob for token, row in zip(text[1:], answer.prompt_logprobs[1:], strict=True)]
        for text, answer in zip(texts, answers, strict=True)
    ]


def graphs() -> int:
    """How many were compiled in this process: the model's, and what the log-probabilities of prompts are ranked with."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def main() -> None:
    """Ask with the places empty, filled for others, for nobody, for all, emptied; and with a hook that came too late."""
    asked = json.load(sys.stdin)
    book, texts = Book(asked["book"], torch.float32), asked["texts"]
    tokens = torch.full((TOKENS,), NOBODY)
    there: list[Any] = []
    load = BaseModelLoader.load_model

    def load_with_places(self: Any, vllm_config: Any, **named: Any) -> Any:
        model = load(self, vllm_config=vllm_config, **named)
        blocks = model.model.layers
        [(layer, room)] = room_of(vllm_config.additional_config, len(blocks)).items()
        there.append((blocks[layer], Places(SLOTS, room, book.keys.shape[1], tokens, torch.float32)))
        put_in({layer: there[0][1]}, blocks, vllm_config.additional_config)
        return model

    BaseModelLoader.load_model = load_with_places
    llm = LLM(
        asked["model"],
        dtype="float32",
        max_model_len=512,
        max_num_batched_tokens=TOKENS,
        enable_prefix_caching=False,
        additional_config={SETTING: {str(book.layer): asked["room"]}},
    )
    compilation = llm.llm_engine.vllm_config.compilation_config
    [(block, places)] = there
    found = {"empty": said(llm, texts)}
    compiled = [graphs()]
    places.fill(1, book)
    found["nobody"] = said(llm, texts)
    tokens.fill_(0)
    found["another"] = said(llm, texts)
    tokens.fill_(1)
    found["theirs"] = said(llm, texts)
    places.fill(1, None)
    found["emptied"] = said(llm, texts)
    calls: list[int] = []
    block.register_forward_hook(lambda *_: calls.append(1))
    found["late"] = said(llm, texts)
    compiled.append(graphs())
    told = {"mode": compilation.mode.name, "backend": compilation.backend, "compiled": compiled, "late": len(calls)}
    sys.stdout.write("\n" + json.dumps({"said": found, **told}) + "\n")


if __name__ == "__main__":
    main()
