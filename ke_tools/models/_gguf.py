"""Turn the embedded model's GGUF file into an ordinary checkpoint folder.

GGUF keeps quantised tensors under names of its own, the rows of the query and key projections in another order
(rotary pairs beside each other instead of half a head apart), and a tokenizer without its pre-tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ke_tools.errors import ModelUnavailable

if TYPE_CHECKING:
    from torch import Tensor

    from ke_tools.models.embedded import Packaged

_TOP: Final = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
_IN_BLOCK: Final = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_CONTROL: Final = 3  # the token type of special tokens


def convert(gguf: Path, folder: Path, model: Packaged, progress: Callable[[float], None]) -> None:
    """Write weights (bfloat16), configuration, tokenizer, chat template and model card into ``folder``."""
    from gguf import GGUFReader

    reader = GGUFReader(str(gguf))
    meta = _Meta(reader)
    _write_json(folder / "config.json", _config(meta))
    _write_json(folder / "generation_config.json", _generation_config(meta))
    (folder / "README.md").write_text(_CARD.format(model=model), "utf-8")
    _write_tokenizer(folder, meta)
    _write_weights(folder / "model.safetensors", reader.tensors, meta, progress)


class _Meta:
    """The file's key-value part."""

    def __init__(self, reader: Any) -> None:
        self._fields = reader.fields

    def __getitem__(self, key: str) -> Any:
        if key not in self._fields:
            raise ModelUnavailable(f"the GGUF file lacks {key}.", "Fetch the model again.")
        return self._fields[key].contents()

    @property
    def special_tokens(self) -> list[str]:
        """By id; the vocabulary begins with them."""
        types = self["tokenizer.ggml.token_type"]
        return [token for token, kind in zip(self["tokenizer.ggml.tokens"], types, strict=True) if kind == _CONTROL]

    @property
    def ids(self) -> dict[str, int]:
        """Ids of the special tokens with a part to play."""
        return {name: int(self[f"tokenizer.ggml.{name}_token_id"]) for name in ("bos", "eos", "padding", "unknown")}


def _config(meta: _Meta) -> dict[str, Any]:
    """Write the keys that every version of transformers since Llama 3 reads (rotary base at the top level)."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": meta.ids["bos"],
        "eos_token_id": meta.ids["eos"],
        "pad_token_id": meta.ids["padding"],
        "head_dim": int(meta["llama.rope.dimension_count"]),
        "hidden_act": "silu",
        "hidden_size": int(meta["llama.embedding_length"]),
        "initializer_range": 0.02,
        "intermediate_size": int(meta["llama.feed_forward_length"]),
        "max_position_embeddings": int(meta["llama.context_length"]),
        "mlp_bias": False,
        "num_attention_heads": int(meta["llama.attention.head_count"]),
        "num_hidden_layers": int(meta["llama.block_count"]),
        "num_key_value_heads": int(meta["llama.attention.head_count_kv"]),
        "rms_norm_eps": round(float(meta["llama.attention.layer_norm_rms_epsilon"]), 9),
        "rope_scaling": None,
        "rope_theta": float(meta["llama.rope.freq_base"]),
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(meta["tokenizer.ggml.tokens"]),
    }


def _generation_config(meta: _Meta) -> dict[str, Any]:
    """Stop at the end of a turn and, unlike the original, at the end of a text, which a bare completion may reach."""
    ids = meta.ids
    return {"bos_token_id": ids["bos"], "eos_token_id": [ids["eos"], ids["unknown"]], "pad_token_id": ids["padding"]}


def _write_tokenizer(folder: Path, meta: _Meta) -> None:
    """Byte-level BPE on single digits, nothing put in front of a text: as the model's authors trained it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = meta["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in meta["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = meta.special_tokens
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {name: tokens[i] for name, i in meta.ids.items()}
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_prefix_space": False,
            "additional_special_tokens": [named["bos"], named["eos"]],
            "bos_token": named["bos"],
            "eos_token": named["eos"],
            "pad_token": named["padding"],
            "unk_token": named["unknown"],
            "chat_template": meta["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": int(meta["llama.context_length"]),
        },
    )


def _write_weights(file: Path, tensors: Any, meta: _Meta, progress: Callable[[float], None]) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads = {"attn_q": int(meta["llama.attention.head_count"]), "attn_k": int(meta["llama.attention.head_count_kv"])}
    weights: dict[str, Tensor] = {}
    for done, tensor in enumerate(tensors):
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        name, part = _renamed(tensor.name)
        weights[name] = (_unpaired(values, heads[part]) if part in heads else values).to(torch.bfloat16).contiguous()
        progress((done + 1) / len(tensors))
    save_file(weights, str(file), metadata={"format": "pt"})


def _renamed(name: str) -> tuple[str, str]:
    """``blk.3.attn_q.weight`` → (``model.layers.3.self_attn.q_proj.weight``, ``attn_q``)."""
    if (found := re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)) and found[2] in _IN_BLOCK:
        return f"model.layers.{found[1]}.{_IN_BLOCK[found[2]]}.weight", found[2]
    part = name.removesuffix(".weight")
    if part not in _TOP:
        raise ModelUnavailable(f"the GGUF file holds a tensor {name!r} that a Llama does not have.", "Fetch the model again.")
    return f"{_TOP[part]}.weight", part


def _unpaired(weight: Tensor, heads: int) -> Tensor:
    """(heads · d, in) with rotary pairs beside each other → the same with them half a head apart."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _write_json(file: Path, values: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")


_CARD: Final = """---
license: apache-2.0
language: en
base_model: {model.hub_id}
---

# {model.hub_id}, converted by ke-tools

Source: the Python package {model.package} {model.release}, file `{model.member}`
({model.size} bytes, sha256 `{model.sha256}`), a Q4_1 quantisation of the model that Hugging Face published as
{model.hub_id} under the licence {model.licence}.

What was done: tensors dequantised and stored in bfloat16, rotary rows put back into their order, the tokenizer given its
pre-tokenizer again (single digits), generation stops at the end of a text too. Nothing was trained or edited. The
weights are therefore close to, but not the same as, those on the hub.
"""
