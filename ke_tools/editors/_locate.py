"""Where in the tokens of a text its subject ends and its target begins; the only place that knows of offsets and padding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

from ke_tools.errors import InvalidInput

if TYPE_CHECKING:
    import torch

__all__ = ["Placed", "Site", "padded", "place"]

Site = Literal["subject", "last"]  # the subject's last token, or the prompt's


@dataclass(frozen=True, slots=True)
class Placed:
    """A prompt with its target as tokens.

    ``ids`` are those of the prompt and then of the target without its last token, which is only predicted: ``target[i]`` is predicted at
    position ``prompt_length - 1 + i``.
    """

    ids: tuple[int, ...]
    site: int  # position of the token that is edited
    prompt_length: int
    target: tuple[int, ...] = ()

    @property
    def predicting(self) -> range:
        """Positions whose next token is one of the target, or the prompt's last position where there is none."""
        return range(self.prompt_length - 1, self.prompt_length - 1 + max(1, len(self.target)))


def place(
    tokenizer: Any,
    prompt: str,
    names: Sequence[str],
    target: str = "",
    *,
    site: Site = "subject",
    behind: int = 0,
    in_chat: bool = False,
) -> Placed:
    """Tokenise a prompt and what shall follow it.

    Args:
        tokenizer: a fast one.
        prompt: text with the subject in it; white space at its end is dropped.
        names: the subject and its aliases; the first that stands in the prompt counts.
        target: what follows; a space is put between.
        site: which token is edited.
        behind: characters of the prompt that are a text before it; a name in there is not looked for.
        in_chat: the prompt is a chat up to where the answer begins, in the template's form: the target follows at once, and the tokenizer
            adds nothing of its own.

    Raises:
        InvalidInput: no name stands in the prompt, or one ends inside a token, or nothing is left of the target.
    """
    prompt = prompt if in_chat else prompt.rstrip()
    text = f"{prompt}{'' if in_chat else ' '}{target.strip()}" if target else prompt
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=not in_chat)
    ids, offsets = list(encoded["input_ids"]), encoded["offset_mapping"]
    while ids and ids[-1] == tokenizer.eos_token_id and offsets[-1] == (0, 0):  # some tokenizers end every text
        ids, offsets = ids[:-1], offsets[:-1]
    length = sum(1 for start, end in offsets if end <= len(prompt))
    own = tuple(ids[length:])
    if target and not own:
        raise InvalidInput(f"the target {target!r} is part of the prompt's last token.", "End the prompt with a whole word.")
    where = length - 1 if site == "last" else _end_of(offsets, prompt, names, behind)
    return Placed(tuple(ids[: length + max(0, len(own) - 1)]), where, length, own)


def _end_of(offsets: Sequence[tuple[int, int]], prompt: str, names: Sequence[str], behind: int) -> int:
    for name in names:
        end = _found(prompt, name, behind)
        if end is None:
            continue
        position = next(n for n, (left, right) in enumerate(offsets) if left < end <= right)
        if offsets[position][1] > end:
            token = prompt[offsets[position][0] : offsets[position][1]]
            raise InvalidInput(
                f"the subject {name!r} ends inside the token {token!r} of {prompt!r}.", "Word the prompt so that the name stands by itself."
            )
        return position
    raise InvalidInput(f"no name of the subject stands in {prompt!r}: {', '.join(names)}.", "Write the prompt with the subject in it.")


def _found(prompt: str, name: str, behind: int) -> int | None:
    """Where a name ends: as a word by itself first, else inside of one; as it is written first, else in other letters."""
    plain = re.escape(name)
    for pattern, flags in product((rf"(?<!\w){plain}(?!\w)", plain), (0, re.IGNORECASE)):
        found = re.compile(pattern, flags).search(prompt, behind) if name else None
        if found:
            return found.end()
    return None


def padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device, *, left: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens as one tensor and its attention mask, both [rows, longest]."""
    import torch

    longest = max(map(len, rows), default=0)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[number, place] = torch.tensor(row, dtype=torch.long)
        mask[number, place] = 1
    return ids.to(device), mask.to(device)
