"""How a model reads: its tokenizer and its chat template."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ke_tools.editors._locate import Placed, place
from ke_tools.errors import InvalidInput, ModelUnavailable, Unsupported
from ke_tools.models.engine import Message, Request

__all__ = ["Template", "brief", "quiet"]

_ROLES: Final = ("system", "user", "assistant")
_MARK: Final = "kxqz"  # a word that no template contains


class Template:
    """Turns requests into tokens. Thread safe."""

    def __init__(self, path: Path, *, model_id: str, trust_remote_code: bool = False) -> None:
        """Read it from a checkpoint's folder.

        Raises:
            ModelUnavailable: it cannot be read.
        """
        self.tokenizer = _load(path, trust_remote_code=trust_remote_code)
        self._model_id = model_id
        self._encoding = threading.Lock()  # the tokenizer's settings are not safe to use from two threads
        self.roles = self._probe_roles()

    def encode(self, request: Request) -> list[int]:
        """Give the prompt's tokens.

        Raises:
            InvalidInput: there are none, or the template refuses the messages. Unsupported: as :meth:`render`.
        """
        if request.messages is not None:
            text, adds = self.render(request.messages), False  # the template writes its own special tokens
        else:
            text, adds = request.prompt or "", True
        with self._encoding:
            ids: list[int] = self.tokenizer(text, add_special_tokens=adds)["input_ids"]
        if not ids:
            raise InvalidInput("the prompt is empty.", "Give some text to go on from.")
        return ids

    def placed(self, request: Request, target: str) -> Placed | None:
        """Give a target's tokens behind a request's; ``None`` where it cannot stand there as tokens of its own.

        Raises:
            InvalidInput, Unsupported: as :meth:`encode`.
        """
        text = self.render(request.messages) if request.messages is not None else request.prompt or ""
        try:
            with self._encoding:
                found = place(self.tokenizer, text, (), target, site="last", in_chat=request.messages is not None)
        except InvalidInput:
            return None
        return found if found.target else None

    def render(self, messages: Sequence[Message]) -> str:
        """Write a conversation as the model reads it.

        Raises:
            Unsupported: the model has no template. InvalidInput: the template refuses these messages.
        """
        if not self.tokenizer.chat_template:
            raise Unsupported(f"{self._model_id} has no chat template, so it takes prompts only.", "Ask by /v1/completions.")
        if not messages:
            raise InvalidInput("messages is empty.", "Give at least one message.")
        plain = [{**message, "content": _text(message.get("content"))} for message in messages]
        try:
            return str(self.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
        except Exception as error:  # templates raise what they like
            raise InvalidInput(f"the model's chat template refuses these messages: {error}", "Change roles or order.") from error

    def _probe_roles(self) -> frozenset[str]:
        """Find the roles whose text the template shows directly before the last user turn, first in a talk and later."""
        if not self.tokenizer.chat_template:
            return frozenset()
        before: tuple[list[Message], ...] = ([], [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}])
        return frozenset(role for role in _ROLES if all(self._shows(role, earlier) for earlier in before))

    def _shows(self, role: str, earlier: list[Message]) -> bool:
        messages = [*earlier, {"role": role, "content": _MARK}, {"role": "user", "content": "three"}]
        try:
            return _MARK in self.render(messages)
        except InvalidInput:
            return False


@contextmanager
def quiet() -> Iterator[None]:
    """Load without progress bars and advice on stderr; what is wrong is raised."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(path: Path, *, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise ModelUnavailable(f"the tokenizer in {path} cannot be read: {brief(error)}", "Fetch the model again.") from error


def brief(error: Exception) -> str:
    """An error of a library on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


def _text(content: object) -> str:
    """Join a message's text parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    texts = [_part(part) for part in (content if isinstance(content, (list, tuple)) else [content])]
    return "".join(texts)


def _part(part: object) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text" and isinstance(text := part.get("text"), str):
        return text
    raise InvalidInput("a message holds something other than text.", "Send text parts only: the model reads nothing else.")
