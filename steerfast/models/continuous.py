"""transformers' continuous batching, steered: a plan for every request of ``generate_batch``.

The manager that an attached model makes takes ``add_request(ids, plan=...)``. Blocks of the KV cache are shared only
between requests of the same plan: transformers knows a block by its token ids alone, and would hand steered
keys and values to an unsteered request with the same prompt.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from steerfast.errors import SteerfastError
from steerfast.models.attachment import Attachment
from steerfast.models.stand_in import StandIn
from steerfast.plans.plan import Plan
from steerfast.routing.packed import PackedRequests
from steerfast.routing.routing import Routing

_DEFAULT: Any = object()  # no plan given: that of handle.use()
_TOKEN_BITS, _SALT_BITS, _SALTED = 20, 11, 8  # block hashes take token ids as 32-bit integers


class SteeredBatching(StandIn):
    """Stands in for ``model.init_continuous_batching``."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        manager = self.original(*args, **kwargs)
        if not isinstance(manager.__dict__.get("add_request"), _AddRequest):
            _steer_manager(manager, self.shared)
        return manager


class SteeredBatch(StandIn):
    """Stands in for ``model.generate_batch``: under ``handle.use([...])`` one plan per prompt."""

    def __call__(self, inputs: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> Any:
        self.shared.in_use().check_batch(
            len(inputs), exact=True, what="generate_batch got {} prompts"
        )
        return self.original(inputs, *args, **kwargs)


def _steer_manager(manager: Any, shared: Attachment) -> None:
    """Replace, on this manager, what adds requests, makes the processor and stops it."""
    for name in ("add_request", "add_requests", "_create_batch_processor", "stop", "output_router"):
        if not hasattr(manager, name):
            import transformers

            raise SteerfastError(
                f"continuous batching of transformers {transformers.__version__} has no {name}, which steering "
                "needs; generate() works, or use a version that is known here (5.23)"
            )
    # Its graphs are captured at once, and any request may come with a plan that reads.
    shared.table.shown_reads.show()
    requests = PackedRequests(Routing(shared.table))
    shared.engines.add(manager)
    add, add_many = manager.add_request, manager.add_requests
    create, stop = manager._create_batch_processor, manager.stop
    manager.add_request = _AddRequest(manager, shared, requests, add)
    manager.steerfast_requests = requests

    def add_requests(inputs: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> Any:
        adding: _AddRequest = manager.add_request
        # Its own loop may sort the prompts; a plan follows its prompt by the name it will get.
        plans = adding.in_use()
        with adding.naming:
            if len(plans) > 1:
                start = manager._request_counter
                adding.by_name = {f"req_{start + i}": plan for i, plan in enumerate(plans)}
            try:
                return add_many(inputs, *args, **kwargs)
            finally:
                adding.by_name = {}

    def create_processor() -> Any:
        processor = create()
        if not getattr(processor, "steerfast_routed", False):
            _route_processor(processor, shared, requests)
        return processor

    def stop_all(*args: Any, **kwargs: Any) -> Any:
        try:
            return stop(*args, **kwargs)
        finally:
            for name in requests.names():
                requests.forget(name)

    manager.add_requests = add_requests
    manager._create_batch_processor = create_processor
    manager.stop = stop_all


class _AddRequest:
    """``manager.add_request`` with ``plan=``: a Plan, or None for an unsteered request; without it, what
    ``handle.use`` says."""

    def __init__(
        self,
        manager: Any,
        shared: Attachment,
        requests: PackedRequests,
        original: Callable[..., Any],
    ) -> None:
        self.manager, self.shared, self.requests = manager, shared, requests
        self.original = original
        self.naming = threading.RLock()
        self.by_name: dict[str, Plan | None] = {}

    def in_use(self) -> list[Plan | None]:
        """The plans of ``handle.use``, in order."""
        return [None if entry is None else entry.plan for entry in self.shared.in_use().requests]

    def __call__(
        self,
        input_ids: Sequence[int],
        request_id: str | None = None,
        *args: Any,
        plan: Plan | None = _DEFAULT,
        **kwargs: Any,
    ) -> Any:
        if not self.shared.is_attached:
            raise SteerfastError(
                "the model of this manager is detached, so its requests would run unsteered; attach it again, and make a manager "
                "then"
            )
        with self.naming:
            if request_id is None:
                with self.manager._request_lock:
                    request_id = f"req_{self.manager._request_counter}"
                    self.manager._request_counter += 1
            if plan is _DEFAULT:
                plans = self.in_use()
                if len(plans) > 1 and request_id not in self.by_name:
                    raise SteerfastError(
                        "handle.use() gives a list of plans, and which one this request means is not known; "
                        "say it: add_request(ids, plan=...)"
                    )
                plan = self.by_name[request_id] if len(plans) > 1 else plans[0]
            children = int(getattr(self.manager, "num_return_sequences", 1)) - 1
            self.requests.admit(request_id, plan, input_ids, children)
            self.shared.note_sites(self.requests.measured)
        try:
            added = self.original(input_ids, request_id, *args, **kwargs)
        except Exception:
            self._forget(request_id, children)
            raise
        if added is None:  # the manager is stopping and dropped it
            self._forget(request_id, children)
        return added

    def _forget(self, name: str, children: int) -> None:
        for one in (name, *(f"{name}__child#{number}" for number in range(children))):
            self.requests.forget(one)


def _route_processor(processor: Any, shared: Attachment, requests: PackedRequests) -> None:
    """Route every batch that the processor prepares, and follow requests to their end."""
    processor.steerfast_routed = True
    inputs, scheduler, cache = processor.inputs_and_outputs, processor.scheduler, processor.cache
    requests.stream = getattr(inputs, "compute_stream", None)
    prepare, finish = inputs.prepare_batch_tensors, scheduler.finish_request
    clear, deliver = scheduler.clear_cancelled_requests, processor.output_router.deliver
    offload = processor.offloading_manager.offload_requests

    def prepare_and_route(requests_in_batch: Any, *args: Any, **kwargs: Any) -> Any:
        # Before the original, which moves each request's position on.
        names = [one.state.request_id for one in requests_in_batch]
        first = [one.state.position_offset for one in requests_in_batch]
        count = [one.query_length for one in requests_in_batch]
        requests.route(names, first, count, max(int(kwargs.get("num_q_tokens", 0)), sum(count)))
        result = prepare(requests_in_batch, *args, **kwargs)
        shared.state.packed = requests.routing
        return result

    making_room = False

    def offload_and_remember() -> Any:
        """What is thrown out to make room also goes by way of ``finish_request``, and comes back under its name."""
        nonlocal making_room
        making_room = True
        try:
            return offload()
        finally:
            making_room = False

    def finish_and_forget(request_id: str) -> Any:
        result = finish(request_id)
        if not making_room:
            requests.forget(request_id)
        return result

    def clear_and_forget() -> Any:
        cancelled = clear()
        for state in cancelled:
            requests.forget(state.request_id)
        return cancelled

    def deliver_and_forget(output: Any) -> Any:
        if output.is_finished():
            requests.forget(output.request_id)
        return deliver(output)

    inputs.prepare_batch_tensors = prepare_and_route
    scheduler.finish_request = finish_and_forget
    processor.offloading_manager.offload_requests = offload_and_remember
    scheduler.clear_cancelled_requests = clear_and_forget
    processor.output_router.deliver = deliver_and_forget
    _share_blocks_by_plan(cache, requests)


def _share_blocks_by_plan(cache: Any, requests: PackedRequests) -> None:
    """Block sharing keyed by the plan: the token ids that hashes are made of carry its digest."""
    if not hasattr(cache, "cache_allocators"):
        import transformers

        raise SteerfastError(
            f"continuous batching of transformers {transformers.__version__} keeps its blocks otherwise than is known here, and "
            "would share them between plans; generate() works, or use transformers 5.23"
        )
    search = cache.search_prefix_match

    def search_by_plan(request_id: str, prompt_ids: list[int]) -> int:
        plan = requests.plan_of(request_id)
        if plan is not None and plan.condition is not None and plan.condition.averages:
            return 0  # its condition must read every token of the prompt
        return int(search(request_id, salted(prompt_ids, plan)))

    cache.search_prefix_match = search_by_plan
    for allocator in cache.cache_allocators.values():
        mark = allocator.mark_complete_blocks

        def mark_by_plan(
            request_id: str, token_ids: list[int], count: int, mark: Any = mark
        ) -> Any:
            return mark(request_id, salted(token_ids, requests.plan_of(request_id)), count)

        allocator.mark_complete_blocks = mark_by_plan


def salted(token_ids: list[int], plan: Plan | None) -> list[int]:
    """Token ids with 88 bits of the plan's digest above those of the first eight: they are only hashed, and the
    hash of every later block begins with that of the first. Unsteered requests keep theirs.

    ValueError for a vocabulary of more than 2^20: then block sharing must be off.
    """
    if plan is None:
        return token_ids
    if any(token >= 1 << _TOKEN_BITS for token in token_ids[:_SALTED]):
        raise ValueError(
            "a token id beyond 2^20 leaves no room for the plan in a block's key; use "
            "ContinuousBatchingConfig(allow_block_sharing=False)"
        )
    bits = int.from_bytes(hashlib.sha256(plan.digest.encode()).digest(), "little")
    bits |= 1  # never nothing
    head = [
        token | ((bits >> (place * _SALT_BITS)) % (1 << _SALT_BITS)) << _TOKEN_BITS
        for place, token in enumerate(token_ids[:_SALTED])
    ]
    return head + token_ids[_SALTED:]
