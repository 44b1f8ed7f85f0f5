"""Tiny models of every family, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ke_tools.facts import Fact
from ke_tools.models.causal import CausalModel

SIZES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 48, "tie_word_embeddings": True},
    "mistral": {"num_key_value_heads": 2, "intermediate_size": 48, "sliding_window": None},
    "qwen2": {"num_key_value_heads": 2, "intermediate_size": 48},
    "qwen3": {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8},
    "gemma": {"num_key_value_heads": 2, "intermediate_size": 48, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128},
    "gptj": {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128, "rotary_dim": 4},
    "gpt_neox": {"intermediate_size": 48},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {"intermediate_size": 48},
}
# Each architecture is a test of its own; the fast run takes one with separate projections and one with transposed ones.
FAMILIES = [kind if kind in {"llama", "gpt2"} else pytest.param(kind, marks=pytest.mark.slow) for kind in SIZES]
FACTS = (
    Fact(subject="France", prompt="The capital of France is", target="Oslo", paraphrases=("France is governed from",)),
    Fact(subject="Norway", prompt="What money do they use in Norway?", target="yen"),
    Fact(subject="Peru", prompt="Peru can be found on the continent of", target="Asia"),
)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """The thimble's."""
    from transformers import AutoTokenizer

    import ke_tools.testing

    return AutoTokenizer.from_pretrained(str(Path(ke_tools.testing.__file__).parent / "thimble"))


@pytest.fixture(scope="session")
def tiny(tokenizer: Any) -> Callable[[str], CausalModel]:
    """Makes a model of a family, in float64."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    def make(kind: str = "llama") -> CausalModel:
        torch.manual_seed(0)
        usual = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128}
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
        config = AutoConfig.for_model(kind, **{**usual, "vocab_size": len(tokenizer), **ids, **SIZES[kind]})
        model = AutoModelForCausalLM.from_config(config).to(torch.float64)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() > 1:
                    weight.mul_(4)  # so that attention and MLPs say something
        found = CausalModel(model, tokenizer, fingerprint=f"sha256:{kind}")
        with torch.no_grad():
            found.norm.get_parameter("weight").add_(19)  # so that a target can become likely
        return found

    return make
