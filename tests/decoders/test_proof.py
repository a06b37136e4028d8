"""The proof at attach: a wiring that is wrong in any one thing is refused, and so is a layer that lies."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_decoders import tiny_decoder

from steerfast.decoders.by_run import survey_by_run
from steerfast.decoders.find import find_decoder
from steerfast.decoders.prove import prove
from steerfast.decoders.read import NotWired
from steerfast.decoders.watch import undisturbed, watch
from steerfast.ops import reference


def proven(name, layer=1, **overrides):
    """(the prompt's run of a layer, the step's, its wiring, the forms of norms)."""
    decoder = find_decoder(tiny_decoder(name, **overrides))
    survey = survey_by_run(decoder, reference)
    with undisturbed(decoder.module):
        prompt, step = watch(decoder)
    found = survey.layers[layer]
    assert found.wiring is not None, found.reason
    return (prompt.runs[layer], step.runs[layer]), found.wiring, survey.forms


def steps(wiring, *changed):
    """The wiring with its steps changed, {field: value} each."""
    pairs = zip(wiring.steps, changed, strict=True)
    return replace(wiring, steps=tuple(replace(step, **change) for step, change in pairs))


def swapped(wiring, field):
    first, second = (getattr(step, field) for step in wiring.steps)
    return steps(wiring, {field: second}, {field: first})


MUTATIONS = {
    "norms swapped": ("llama", lambda w: swapped(w, "before")),
    "branch norms swapped": ("gemma2", lambda w: swapped(w, "after")),
    "bodies swapped": ("llama", lambda w: swapped(w, "body")),
    "steps swapped": ("llama", lambda w: replace(w, steps=w.steps[::-1])),
    "arguments swapped": ("llama", lambda w: swapped(w, "arguments")),
    "an argument forgotten": (
        "llama",
        lambda w: steps(w, {"arguments": w.steps[0].arguments[1:]}, {}),
    ),
    "an argument more": ("llama", lambda w: steps(w, {}, {"arguments": w.steps[0].arguments[:1]})),
    "a branch norm dropped": ("gemma2", lambda w: steps(w, {"after": ()}, {})),
    "the last branch norm dropped": ("gemma2", lambda w: steps(w, {}, {"after": ()})),
    "a post-norm dropped": ("olmo2", lambda w: steps(w, {"after": ()}, {})),
    "a post-norm in front": (
        "olmo2",
        lambda w: steps(w, {"after": (), "before": w.steps[0].after[0]}, {}),
    ),
    "an entry norm dropped": ("llama", lambda w: steps(w, {"before": None}, {})),
    "a norm between dropped": ("llama", lambda w: steps(w, {}, {"before": None})),
    "a scale forgotten": ("granite", lambda w: steps(w, {"scale": None}, {})),
    "the last scale forgotten": ("granite", lambda w: steps(w, {}, {"scale": None})),
    "a scale for a factor": (
        "granite",
        lambda w: replace(steps(w, {}, {"scale": None}), factor=w.steps[1].scale),
    ),
    "a factor forgotten": ("gemma4_unified_text", lambda w: replace(w, factor=None)),
    "a factor in the first step": (
        "gemma4_unified_text",
        lambda w: steps(replace(w, factor=None), {"scale": w.factor}, {}),
    ),
    "a step forgotten": ("llama", lambda w: replace(w, steps=w.steps[:1])),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_wrong_wiring_is_refused(mutation):
    name, change = MUTATIONS[mutation]
    runs, wiring, forms = proven(name)
    wrong = change(wiring)
    assert wrong != wiring
    for run in runs:
        prove(run, wiring, forms, reference)
        with pytest.raises(NotWired):
            prove(run, wrong, forms, reference)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_a_wrong_norm_is_refused(name):
    runs, wiring, forms = proven(name)
    kind = type(runs[0].layer._modules[wiring.steps[1].before])
    other = "fp32" if forms[kind].order == "hf" else "hf"
    for change in ({"offset": not forms[kind].offset}, {"weighted": False}):
        with pytest.raises(NotWired):
            prove(runs[0], wiring, {**forms, kind: replace(forms[kind], **change)}, reference)
    # Where it rounds shows in 16 bits only, in which the form was read off.
    prove(runs[0], wiring, {**forms, kind: replace(forms[kind], order=other)}, reference)
