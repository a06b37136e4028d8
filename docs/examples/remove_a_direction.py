"""A direction taken out of every place that a model writes to: the embeddings, each attention, each MLP.

python docs/examples/remove_a_direction.py [MODEL]    a folder or hub id of a Llama; default SmolLM2
"""

import sys

import torch

from steerfast import Plan, SteeringVector, Term, attach, contrast, extract_pairs, load_model

model, tokenizer, name = load_model(sys.argv[1] if len(sys.argv) > 1 else None, dtype=torch.float32)
count = model.config.num_hidden_layers
joy = extract_pairs(
    model, tokenizer, contrast.load("sentiment").train[:24], name="joy", position="mean"
)
direction = joy.at(count // 3)  # one layer's direction, for all places
everywhere = SteeringVector("joy", dict.fromkeys(range(count), direction))
remove = Plan(
    (
        Term(everywhere, layers=(0,), site="resid_pre", operator="ablate"),
        Term(everywhere, site="resid_mid", operator="ablate"),
        Term(everywhere, site="resid_post", operator="ablate"),
    )
)
prompt = tokenizer("My day was", return_tensors="pt").to(model.device)
unit = direction.to(model.device) / direction.norm()
with attach(model) as handle:
    for what, plan in (("as it is", None), ("without", remove)):
        with handle.use(plan), torch.no_grad():
            states = model(**prompt, output_hidden_states=True).hidden_states
            print(handle.report().steered, "rows steered,", what)
            out = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
        along = max(float((state @ unit).abs().max()) for state in states[:-1])
        print(f"  most of the direction in any layer: {along:.5f}")
        print(f"  {tokenizer.decode(out[0])!r}")
