"""One batch, in which every row has a plan of its own: strengths, an operator, only the answer, and none.

python docs/examples/a_plan_a_row.py [MODEL]    a folder or hub id of a Llama; default SmolLM2
"""

import sys

from steerfast import Schedule, attach, contrast, extract_pairs, load_model, steer

model, tokenizer, name = load_model(sys.argv[1] if len(sys.argv) > 1 else None)
tokenizer.padding_side = "left"
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
layer = model.config.num_hidden_layers // 3
joy = extract_pairs(
    model, tokenizer, contrast.load("sentiment").train[:24], name="joy", position="mean"
)

stream = {"layers": [layer], "scale": "stream"}
rows = [
    ("My day was", "unsteered", None),
    ("My day was", "happy", steer(joy, 0.2, **stream)),
    ("My day was", "gloomy", steer(joy, -0.2, **stream)),
    (
        "When the letter came, I",
        "happy, the answer only",
        steer(joy, 0.2, select="generated", **stream),
    ),
    ("When the letter came, I", "fading", steer(joy, 0.3, schedule=Schedule.decay(4), **stream)),
    ("My day was", "joy reflected", steer(joy, operator="reflect", layers=[layer])),
]
prompts = tokenizer([prompt for prompt, _, _ in rows], return_tensors="pt", padding=True)
prompts = prompts.to(model.device)
with attach(model) as handle, handle.use([plan for _, _, plan in rows]):
    out = model.generate(**prompts, max_new_tokens=24, do_sample=False)
    print(handle.report())
for (_, what, _), text in zip(
    rows, tokenizer.batch_decode(out, skip_special_tokens=True), strict=True
):
    print(f"{what}: {text!r}")
