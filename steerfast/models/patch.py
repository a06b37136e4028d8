"""``attach``: patch a decoder so that its layers steer. The layer itself is in ``models.steered_layer``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from steerfast.decoders.find import Decoder, find_decoder
from steerfast.decoders.look import look
from steerfast.decoders.survey import Survey, closed_sites
from steerfast.errors import SteerfastError
from steerfast.models import scope
from steerfast.models.attachment import Attachment
from steerfast.models.checks import check_decoder, check_peft
from steerfast.models.continuous import SteeredBatch, SteeredBatching
from steerfast.models.decoder import SteeredModel, SteeredNorm
from steerfast.models.devices import check_one_device
from steerfast.models.forwards import Forwards, attachment_of
from steerfast.models.generate import SteeredGenerate, SteeredPrepare
from steerfast.models.hand_over import KernelNorm
from steerfast.models.handle import Handle
from steerfast.models.outer_mask import keep_masks
from steerfast.models.plain_layer import PlainLayer
from steerfast.models.rebind import Rebindings
from steerfast.models.steered_layer import SteeredLayer
from steerfast.ops import backends
from steerfast.ops.implementations import implementation
from steerfast.plans.fields import choice, whole
from steerfast.plans.sites import Site, site_index, site_name
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
    prove: bool = True,
) -> Handle:
    """Patch a decoder of transformers in place; ``handle.detach()`` undoes it exactly.

    model: a causal language model, its decoder, or anything that contains one (PEFT, a classifier, vision beside text).
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
    prove: run a few tokens through the model, and fuse what is shown to be right on them, bit for bit. False: go by the
        classes of its parts, as with a model that is offloaded. What is not fused is steered behind its layers, just as
        right, without ``resid_mid``: ``handle.report()`` says so.

    The model then behaves as before (bitwise in the residual stream) until ``handle.use(plan)``.
    Raises TypeError for something that is no module, TypeError or ValueError for an argument that is none of these
    (a site that the model does not have, no slots), SteerfastError for a model without a decoder, one that is
    attached already, or has parts that another library replaced. Nothing is changed then.
    """
    decoder = find_decoder(model)
    check_decoder(decoder)
    check_one_device(decoder)
    check_peft(model)
    sites = _sites(measured, len(decoder.layers))
    shared = _attachment(decoder, slots, bank_rows, programs, backend, sites)
    found = look(decoder, implementation(shared.backend), prove=prove)
    shared.survey = found
    shared.table.closed = closed_sites(found)
    for site in sites & shared.table.closed.keys():
        raise ValueError(f"measured names {site_name(site)}, {shared.table.closed[site]}")
    _rebind_decoder(decoder, found, shared)
    keep_masks(model, decoder, shared, shared.rebindings)
    _rebind_generation(model, decoder.module, shared, shared.rebindings)
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
    shared = attachment_of(find_decoder(model))
    if shared is None:
        raise SteerfastError(
            f"this {type(model).__name__} is not attached; attach(model) gives a handle"
        )
    return Handle(model, shared)


def _attachment(
    decoder: Decoder,
    slots: int,
    bank_rows: int | None,
    programs: int | None,
    backend: str | None,
    measured: frozenset[int],
) -> Attachment:
    weight = next(p for p in decoder.layers[0].parameters() if p.is_floating_point())
    # An offloaded model's weights are on meta; the table then follows the first input.
    device = torch.device("cpu") if weight.device.type == "meta" else weight.device
    if weight.dtype is torch.float64 and backend in (None, "auto"):
        backend = "reference"
    chosen = backends.resolve(backend, device)
    layers, width = len(decoder.layers), decoder.hidden_size
    late = programs is None and chosen in FASTER_WITHOUT_READS
    room: dict[str, Any] = {"slots": slots, "bank_rows": bank_rows, "programs": programs}
    table = Table(layers, width, **room, reads_late=late, device=device)
    name = str(getattr(decoder.config, "_name_or_path", ""))
    return Attachment(table, chosen, name, measured)


def _rebind_decoder(decoder: Decoder, found: Survey, shared: Attachment) -> None:
    forwards, rebindings, module = Forwards(shared), shared.rebindings, decoder.module
    final = module._modules[found.norm] if found.norm is not None and found.norm_form else None
    norm_is_plain = final is not None and "forward" not in final.__dict__
    steered = [
        _rebind_layer(decoder, index, found, forwards, rebindings)
        for index in range(len(found.layers))
    ]
    if final is not None:
        rebindings.rebind(
            final,
            f"{decoder.path}{found.norm}",
            "forward",
            lambda original: SteeredNorm(final, forwards, original).forward,
        )
    entries = [_entry_norm(ours, found) for ours in steered]
    steered[0].enters = not found.embedded
    norms = {type(norm) for norm in module.modules() if type(norm) in found.forms}

    def model_forward(original: Any) -> Any:
        return SteeredModel(
            decoder,
            forwards,
            original,
            steered,
            embedded=found.embedded,
            first=entries[0],
            norms=norms,
        ).forward

    rebindings.rebind(module, decoder.path.rstrip(".") or "model", "forward", model_forward)
    for ours, following in zip(steered, entries[1:], strict=False):
        ours.next = following
    if norm_is_plain:
        assert found.norm is not None
        assert found.norm_form is not None
        steered[-1].next = KernelNorm(
            module,
            found.norm,
            found.norm_form,
            owner_forward=module.__dict__["forward"],
            norm_forward=module._modules[found.norm].__dict__["forward"],
            apart=False,
        )


def _rebind_layer(
    decoder: Decoder, index: int, found: Survey, forwards: Forwards, rebindings: Rebindings
) -> SteeredLayer | PlainLayer:
    layer, wiring = decoder.layers[index], found.layers[index].wiring
    made: list[SteeredLayer | PlainLayer] = []

    def layer_forward(original: Any) -> Any:
        ours: SteeredLayer | PlainLayer
        if wiring is None:
            ours = PlainLayer(layer, index, forwards, original)
        else:  # written anew
            ours = SteeredLayer(layer, index, wiring, found.forms, forwards, original)
        made.append(ours)
        return ours.forward

    rebindings.rebind(layer, f"{decoder.layers_path}{index}", "forward", layer_forward)
    made[0].own_forward = layer.__dict__.get("forward")
    return made[0]


def _entry_norm(ours: SteeredLayer | PlainLayer, found: Survey) -> KernelNorm | None:
    """The norm that a layer starts with, if its form is known."""
    if isinstance(ours, PlainLayer):
        return None
    name, layer = ours.wiring.steps[0].before, ours.layer
    form = None if name is None else found.forms.get(type(getattr(layer, name)))
    if name is None or form is None:
        return None
    return KernelNorm(layer, name, form, owner_forward=ours.own_forward)


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
