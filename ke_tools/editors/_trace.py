"""Looking at a model while it runs, and changing what runs through it, for as long as a ``with`` lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Stop", "adding", "changing", "inputs_of", "run_until"]


class Stop(Exception):
    """Nothing behind this point of the model is needed."""


@contextmanager
def inputs_of(modules: Mapping[Any, nn.Module]) -> Iterator[dict[Any, torch.Tensor]]:
    """Note the first positional input of each module, under its key, as it was when the module last ran."""
    seen: dict[Any, torch.Tensor] = {}

    def noting(key: Any) -> Callable[..., None]:
        def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[key] = args[0]

        return note

    with ExitStack() as stack:
        for key, module in modules.items():
            stack.callback(module.register_forward_pre_hook(noting(key)).remove)
        yield seen


@contextmanager
def adding(changes: Sequence[tuple[nn.Module, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]]) -> Iterator[None]:
    """Replace each module's output by what its function makes of (input, output)."""
    with ExitStack() as stack:
        for module, change in changes:
            stack.callback(module.register_forward_hook(changing(change)).remove)
        yield


def changing(change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """Make a forward hook of a function from (input, output) to the output that takes its place."""

    def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(args[0], output[0]), *output[1:])
        return change(args[0], output)

    return hook


def run_until(model: Any, module: nn.Module, **inputs: Any) -> torch.Tensor:
    """Run a model up to a module and return that module's output; what lies behind is not computed."""
    found: list[torch.Tensor] = []

    def stop(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise Stop

    handle = module.register_forward_hook(stop)
    try:
        model(**inputs)
    except Stop:
        pass
    finally:
        handle.remove()
    return found[0]
