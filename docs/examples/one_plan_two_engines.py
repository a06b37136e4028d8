"""One plan file, two engines: transformers and vLLM give the same text. Run it where vLLM is installed.

python docs/examples/one_plan_two_engines.py [MODEL]    a folder or hub id of a Llama; default SmolLM2
"""

import os
import sys

import torch

from steerfast import attach, contrast, extract_pairs, load_model, load_plan, save_plan, steer

if __name__ == "__main__":  # vLLM starts processes that read this file again
    # Plans may carry their vectors; a cache of 1 GB is plenty where there is no GPU.
    os.environ |= {"STEERFAST_INLINE": "1", "STEERFAST_MAX_PLAN_BYTES": "1000000"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    model, tokenizer, _ = load_model(sys.argv[1] if sys.argv[1:] else None, dtype=torch.float32)
    layer = model.config.num_hidden_layers // 3
    pairs = contrast.load("sentiment").train[:24]
    joy = extract_pairs(model, tokenizer, pairs, name="joy", position="mean", layers=[layer])
    file = save_plan(steer(joy, 0.2, scale="stream"), "happy.json")
    model.save_pretrained("two-engines")
    tokenizer.save_pretrained("two-engines")

    prompt = tokenizer("My day was", return_tensors="pt")
    with attach(model) as handle:
        for what, plan in (("unsteered", None), ("transformers", load_plan(file))):
            with handle.use(plan):
                out = model.generate(**prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)
            print(f"{what}: {tokenizer.decode(out[0], skip_special_tokens=True)!r}")

    from vllm import LLM, SamplingParams

    llm = LLM("two-engines", dtype="float32", max_model_len=256, block_size=32, enforce_eager=True)
    steered = SamplingParams(
        temperature=0, max_tokens=24, extra_args={"steerfast": file.read_text()}
    )
    print(f"vLLM: {'My day was' + llm.generate('My day was', steered)[0].outputs[0].text!r}")
