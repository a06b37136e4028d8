"""Two behaviours: each alone, both at one layer (combined), each at a layer of its own (simultaneous).

python docs/examples/several_behaviours.py [MODEL]    a folder or hub id of a Llama; default SmolLM2
"""

import sys

from steerfast import Plan, Term, attach, contrast, extract_pairs, load_model, steer

model, tokenizer, name = load_model(sys.argv[1] if len(sys.argv) > 1 else None)
first = model.config.num_hidden_layers // 3
second = first + 2

vectors = {}
for behaviour in ("sentiment", "formality"):  # sets of pairs that ship; or JSON files of yours
    pairs = contrast.load(behaviour).train[:24]
    vectors[behaviour] = extract_pairs(model, tokenizer, pairs, name=behaviour, position="mean")
joy, formal = vectors.values()

plans = {
    "unsteered": None,
    "joyful": steer(joy, 0.2, layers=[first], scale="stream"),
    "formal": steer(formal, 0.2, layers=[first], scale="stream"),
    "combined": Plan((Term(joy, 0.2, (first,), "stream"), Term(formal, 0.2, (first,), "stream"))),
    "simultaneous": Plan(
        (Term(joy, 0.2, (first,), "stream"), Term(formal, 0.2, (second,), "stream"))
    ),
}
prompts = tokenizer(["Dear Sam, my week was"] * len(plans), return_tensors="pt").to(model.device)
with attach(model) as handle, handle.use(list(plans.values())):
    out = model.generate(**prompts, max_new_tokens=24, do_sample=False, pad_token_id=0)
    print(handle.report())
for what, text in zip(plans, tokenizer.batch_decode(out), strict=True):
    print(f"{what}: {text!r}")
