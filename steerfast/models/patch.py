"""``attach``: patch a Llama so that its layers steer. The layer itself is in ``models.llama``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.attachment import Attachment
from steerfast.models.checks import check_decoder, check_peft, find_decoder
from steerfast.models.continuous import SteeredBatch, SteeredBatching
from steerfast.models.devices import check_one_device
from steerfast.models.forwards import Forwards, attachment_of
from steerfast.models.generate import SteeredGenerate, SteeredPrepare
from steerfast.models.hand_over import NextNorm
from steerfast.models.handle import Handle
from steerfast.models.llama import SteeredLayer, SteeredModel, SteeredNorm
from steerfast.models.rebind import Rebindings
from steerfast.ops import backends
from steerfast.plans.fields import choice, whole
from steerfast.plans.sites import Site, site_index
from steerfast.table.table import Table

FASTER_WITHOUT_READS = ("cuda", "triton")  # the backends with kernels for plans of constants


def attach(
    model: nn.Module,
    *,
    slots: int = 64,
    bank_rows: int | None = None,
    programs: int | None = None,
    backend: str | None = None,
    measured: Iterable[tuple[Site, int]] = (),
) -> Handle:
    """Patch a Llama of transformers in place; ``handle.detach()`` undoes it exactly.

    model: a ``LlamaForCausalLM``, ``LlamaModel`` or anything that contains one (PEFT, a classifier).
    slots: how many phases of plans can be in use at once (a plan that tells prompt from generated
        tokens takes two). bank_rows: room for deltas (one per phase and steered site) and directions
        that terms read or write, equal ones stored once; programs: room for the programs of such
        terms. Both by default ``slots * (layers + 1)``. All are fixed, so that compiled code and graphs never move. On a GPU
        a model whose plans have no such terms runs faster, by default until one has: compiled code is compiled once more
        then, and where a graph was captured such a plan is refused. ``programs=N`` is ready for them from the beginning.
    backend: cuda | triton | cpu | reference; None or "auto" takes the best there is (the reference
        for a float64 model, which the kernels do not know).
    measured: sites, as ("resid_post", 12), where conditions of plans will be measured. Others are added when a plan
        asks for them, but code that is compiled or captured by then does not look there.

    The model then behaves as before (bitwise in the residual stream) until ``handle.use(plan)``.
    Raises TypeError for something that is no module, TypeError or ValueError for an argument that is none of these
    (a site that the model does not have, no slots), SteerfastError for a model that is no Llama, is
    attached already, or has parts that another library replaced. Nothing is changed then.
    """
    decoder, path = find_decoder(model)
    check_decoder(decoder, path)
    check_one_device(decoder, path)
    check_peft(model)
    sites = _sites(measured, len(decoder.layers))
    shared = _attachment(decoder, slots, bank_rows, programs, backend, sites)
    rebindings = shared.rebindings
    _rebind_decoder(decoder, path, shared, rebindings)
    _rebind_generation(model, decoder, shared, rebindings)
    scope.follow_threads()
    return Handle(model, shared)


def _sites(measured: Iterable[tuple[Site, int]], layers: int) -> frozenset[int]:
    """By their numbers. TypeError or ValueError for what is no site of this model."""
    found = set()
    for one in measured:
        if isinstance(one, str) or not isinstance(one, Sequence) or len(one) != 2:
            raise ValueError(f'measured names sites, as [("resid_post", 12)]; got {one!r}')
        site, layer = one[0], whole("the layer of a measured site", one[1])
        choice("site of measured", site, Site)
        if not 0 <= layer < layers:
            raise ValueError(
                f"measured names {site} of layer {layer}, but this model has layers 0..{layers - 1}"
            )
        found.add(site_index(site, layer))
    return frozenset(found)


def handle_of(model: nn.Module) -> Handle:
    """The handle of a model that is attached: of one whose handle was lost, or of a copy.

        handle_of(model).detach()

    Raises TypeError for something that is no module, SteerfastError for a model that is not attached.
    """
    decoder, _ = find_decoder(model)
    shared = attachment_of(decoder)
    if shared is None:
        raise SteerfastError(
            f"this {type(model).__name__} is not attached; attach(model) gives a handle"
        )
    return Handle(model, shared)


def _attachment(
    decoder: Any,
    slots: int,
    bank_rows: int | None,
    programs: int | None,
    backend: str | None,
    measured: frozenset[int],
) -> Attachment:
    weight = decoder.layers[0].input_layernorm.weight
    # An offloaded model's weights are on meta; the table then follows the first input.
    device = torch.device("cpu") if weight.device.type == "meta" else weight.device
    if weight.dtype is torch.float64 and backend in (None, "auto"):
        backend = "reference"
    chosen = backends.resolve(backend, device)
    layers, width = len(decoder.layers), int(decoder.config.hidden_size)
    late = programs is None and chosen in FASTER_WITHOUT_READS
    room: dict[str, Any] = {"slots": slots, "bank_rows": bank_rows, "programs": programs}
    table = Table(layers, width, **room, reads_late=late, device=device)
    name = str(getattr(decoder.config, "_name_or_path", ""))
    return Attachment(table, chosen, name, measured)


def _rebind_decoder(decoder: Any, path: str, shared: Attachment, rebindings: Rebindings) -> None:
    forwards = Forwards(shared)
    norm_is_plain = "forward" not in decoder.norm.__dict__
    steered = [SteeredLayer(layer, index, forwards) for index, layer in enumerate(decoder.layers)]
    for index, ours in enumerate(steered):
        where = f"{path}layers.{index}"
        rebindings.rebind(ours.layer, where, "forward", partial(_ignoring, ours.forward))
        ours.own_forward = ours.layer.__dict__.get("forward")

    def norm_forward(original: Any) -> Any:
        return SteeredNorm(decoder.norm, forwards, original).forward

    rebindings.rebind(decoder.norm, f"{path}norm", "forward", norm_forward)
    norms = [NextNorm(ours.layer, "input_layernorm", ours.own_forward, None) for ours in steered]

    def model_forward(original: Any) -> Any:
        return SteeredModel(decoder, forwards, original, steered, norms[0]).forward

    rebindings.rebind(decoder, path.rstrip(".") or "model", "forward", model_forward)
    for ours, following in zip(steered, norms[1:], strict=False):
        ours.next = following
    if norm_is_plain:
        model_now, norm_now = decoder.__dict__["forward"], decoder.norm.__dict__["forward"]
        steered[-1].next = NextNorm(decoder, "norm", model_now, norm_now)


def _rebind_generation(
    model: nn.Module, decoder: nn.Module, shared: Attachment, rebindings: Rebindings
) -> None:
    from transformers import GenerationMixin

    for name, module in model.named_modules():
        if isinstance(module, GenerationMixin) and any(m is decoder for m in module.modules()):
            where, prepare = name or "model", "prepare_inputs_for_generation"
            rebindings.rebind(module, where, "generate", partial(SteeredGenerate, shared))
            rebindings.rebind(module, where, prepare, partial(SteeredPrepare, shared))
            if hasattr(module, "init_continuous_batching"):
                batching = "init_continuous_batching"
                rebindings.rebind(module, where, batching, partial(SteeredBatching, shared))
                rebindings.rebind(module, where, "generate_batch", partial(SteeredBatch, shared))


def _ignoring(ours: Any, original: Any) -> Any:
    """A layer's forward is written anew; it does not call the original."""
    return ours
