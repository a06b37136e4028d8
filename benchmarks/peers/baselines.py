"""What one writes without a library, the wrapper of the paper, and steerfast itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from peers.peer import Call, Peer, Task, logits_of, removing

Edit = Callable[[Tensor], Tensor]


def edits(model: Any, task: Task) -> dict[int, Edit]:
    """What a user writes by hand for a layer's output, prepared once: layer -> function of h."""
    return {
        layer: _edit(task.operation, vector, task.coefficient)
        for layer, vector in task.like(model).items()
    }


def _edit(operation: str, vector: Tensor, coefficient: float) -> Edit:
    added, unit = coefficient * vector, vector / vector.norm()

    def preserve(h: Tensor) -> Tensor:
        y = h + added
        return y * (h.norm(dim=-1, keepdim=True) / y.norm(dim=-1, keepdim=True))

    if operation == "preserve":
        return preserve
    if operation == "ablate":
        return lambda h: h - (h @ unit)[..., None] * unit
    return lambda h: h + added


@contextmanager
def hook(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    """A forward hook on each steered layer."""
    handles = []
    for layer, edit in edits(model, task).items():
        module = model.model.layers[layer]
        if task.operation == "add_from":
            handles.append(
                module.register_forward_hook(_hook_from(edit, task.start), with_kwargs=True)
            )
        else:
            handles.append(module.register_forward_hook(_hook(edit)))
    with removing(handles):
        yield logits_of(model)


def _hook(edit: Edit) -> Callable[..., Tensor]:
    def hooked(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return edit(output)

    return hooked


def _hook_from(edit: Edit, start: int) -> Callable[..., Tensor]:
    def hooked(module: nn.Module, inputs: Any, given: dict[str, Any], output: Tensor) -> Tensor:
        steered = given["position_ids"][..., None] >= start
        return edit(output).where(steered, output)

    return hooked


class BlockWrapper(nn.Module):
    """Stands in for a decoder layer and adds coefficient * vector to what it returns, at every call."""

    def __init__(self, block: nn.Module, vector: Tensor, coefficient: float) -> None:
        super().__init__()
        self.block, self.vector, self.coefficient = block, vector, coefficient

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.block(*args, **kwargs)
        if isinstance(output, tuple):
            return (output[0] + self.coefficient * self.vector, *output[1:])
        return output + self.coefficient * self.vector


@contextmanager
def paper(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    """Every decoder layer is wrapped, as in the paper's code; those without a vector add nothing."""
    layers = model.model.layers
    blocks = list(layers)
    for layer, vector in task.like(model).items():
        layers[layer] = BlockWrapper(blocks[layer], vector, task.coefficient)
    try:
        yield logits_of(model)
    finally:
        for layer in task.vectors:
            layers[layer] = blocks[layer]


@contextmanager
def steerfast(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    """attach, and one plan for all rows."""
    yield from _attached(model, lambda batch: _plan(task, task.coefficient))


@contextmanager
def steerfast_idle(model: Any, tokenizer: Any) -> Iterator[Call]:
    """attach, and nothing in use."""
    from steerfast import attach

    handle = attach(model)
    try:
        yield logits_of(model)
    finally:
        handle.detach()


@contextmanager
def steerfast_by_row(model: Any, tokenizer: Any, task: Task) -> Iterator[Call]:
    """attach, and a plan for each row, no two with the same coefficient."""

    def plans(batch: int) -> list[Any]:
        return [_plan(task, task.coefficient * (1 + row / batch)) for row in range(batch)]

    yield from _attached(model, plans)


def _plan(task: Task, coefficient: float) -> Any:
    from steerfast import Plan, Positions, SteeringVector, Term

    vector = SteeringVector("task", task.vectors)
    operator = "ablate" if task.operation == "ablate" else "add"
    select = Positions(task.start) if task.operation == "add_from" else "all"
    term = Term(
        vector, 1.0 if operator == "ablate" else coefficient, operator=operator, select=select
    )
    return Plan((term,), finish="preserve" if task.operation == "preserve" else "none")


def _attached(model: Any, plans: Callable[[int], Any]) -> Iterator[Call]:
    """plans: of a batch of so many rows, one for all or a list."""
    from steerfast import attach

    forward = logits_of(model)
    handle = attach(model)
    with ExitStack() as undo:
        undo.callback(handle.detach)
        loop: Any = None
        using = False

        def call(input_ids: Tensor, past_key_values: Any = None, **inputs: Any) -> Tensor:
            nonlocal loop, using
            if not using:
                undo.enter_context(handle.use(plans(len(input_ids))))
                using = True
            # An empty cache is a new prompt: from there on as generate does, which routes each step ahead.
            if past_key_values is not None and past_key_values.get_seq_length() == 0:
                mask = inputs.get("attention_mask")
                loop = undo.enter_context(handle.generating(input_ids, mask))
            if past_key_values is not None and loop is not None:
                loop.step(input_ids.shape[1])
            return forward(input_ids, past_key_values=past_key_values, **inputs)

        yield call


PEERS = (
    Peer(
        "hook",
        "",
        "main",
        "",
        hook,
        frozenset({"add", "preserve", "ablate", "add_from"}),
        True,
        "block output",
        "a bare forward hook with the vector scaled once; everything is the user's own code",
    ),
    Peer(
        "paper",
        "",
        "main",
        "",
        paper,
        frozenset({"add"}),
        False,
        "block output",
        "wrapped blocks, coefficient * vector at every call, written after the paper's code",
    ),
    Peer(
        "steerfast",
        "",
        "main",
        "Apache-2.0",
        steerfast,
        frozenset({"add", "preserve", "ablate", "add_from"}),
        True,
        "block output",
        "patched layers: residual add, steering and RMSNorm in one kernel",
        steerfast_idle,
    ),
    Peer(
        "steerfast, a plan a row",
        "",
        "main",
        "Apache-2.0",
        steerfast_by_row,
        frozenset(),  # timed; what it computes is the tests' matter
        True,
        "block output",
        "the same, every row of the batch with a plan of its own",
        steerfast_idle,
    ),
)
