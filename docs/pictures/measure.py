"""steering.json, which draw.py draws: one prompt steered both ways, and the dose-response of every shipped direction.

python docs/pictures/measure.py            # some minutes: SmolLM2-135M-Instruct, float32
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from steerfast import attach, contrast, extract_pairs
from steerfast.experiments.demo import generations
from steerfast.experiments.dose import dose_response
from steerfast.models.load import load_model

PROMPT, SHOWN, LAYER, TOKENS = "Write a review of the restaurant.", "sentiment", 10, 22
DOSES = (-0.25, 0.0, 0.25)


def main() -> None:
    model, tokenizer, name = load_model(dtype=torch.float32)
    curves, texts = {}, []
    with attach(model) as handle:
        for seed, each in enumerate(contrast.load(known) for known in contrast.shipped()):
            vector = extract_pairs(model, tokenizer, each.train, name=each.name, position="mean")
            points = dose_response(
                handle, tokenizer, vector, each.held_out, layers=[LAYER], seed=seed
            )
            curves[each.name] = [[round(value, 3) for value in point] for point in points]
            if each.name == SHOWN:
                texts = generations(
                    handle, tokenizer, vector, PROMPT, LAYER, coefficients=DOSES, tokens=TOKENS
                )
    found = {
        "model": name,
        "layer": LAYER,
        "prompt": PROMPT,
        "direction": SHOWN,
        "generations": [[row["coefficient"], row["text"]] for row in texts],
        "dose_response": curves,
    }
    lines = ",\n".join(
        f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in found.items()
    )
    path = Path(__file__).with_name("steering.json")
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
