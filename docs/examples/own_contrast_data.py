"""A vector from pairs of your own, and what it does at three strengths.

python docs/examples/own_contrast_data.py [MODEL]    a folder or hub id of a Llama; default SmolLM2
"""

import sys

from steerfast import attach, extract_pairs, load_model, save_vector, steer

PAIRS = [  # a prompt, its continuation on a rainy day, its continuation on a sunny one
    ("We stepped outside and", " the rain soaked us to the skin.", " the sun warmed our faces."),
    ("From the window I saw", " grey clouds and wet streets.", " a blue sky over dry roofs."),
    ("The children played", " in puddles, in rubber boots.", " in the sand, under a parasol."),
    ("On the way to work", " my umbrella broke in the storm.", " I squinted in the bright light."),
    ("Our picnic ended", " when it began to pour.", " when the shade had moved on."),
    ("The garden smelled of", " wet leaves after the shower.", " hot stone and dry grass."),
    ("All through August", " it drizzled without an end.", " not a drop fell from the sky."),
    ("The roof", " leaked where the rain came in.", " baked in the heat of noon."),
]

model, tokenizer, name = load_model(sys.argv[1] if len(sys.argv) > 1 else None)
layer = model.config.num_hidden_layers // 3
rain = extract_pairs(model, tokenizer, PAIRS, name="rain", position="mean")
print(rain, "->", save_vector(rain, "rain.safetensors"))

strengths = [-0.2, 0.0, 0.2]  # of the stream's typical length at that layer; 0 leaves the row alone
plans = [steer(rain, strength, layers=[layer], scale="stream") for strength in strengths]
prompts = tokenizer(["This morning we"] * 3, return_tensors="pt").to(model.device)
with attach(model) as handle, handle.use(plans):
    out = model.generate(**prompts, max_new_tokens=24, do_sample=False, pad_token_id=0)
    print(handle.report())
for strength, text in zip(strengths, tokenizer.batch_decode(out), strict=True):
    print(f"{strength:+.1f}: {text!r}")
