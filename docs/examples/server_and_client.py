"""A server of vLLM, and a client whose requests bring plans of their own. Run it where vLLM is installed.

python docs/examples/server_and_client.py [MODEL]    a folder or hub id of a Llama; default SmolLM2
"""

import os
import subprocess
import sys

from openai import OpenAI

from steerfast import contrast, extract_pairs, load_model, save_vector
from steerfast.serving import openai_args

model, tokenizer, _ = load_model(sys.argv[1] if len(sys.argv) > 1 else None)
pairs, layer = contrast.load("sentiment").train[:24], model.config.num_hidden_layers // 3
joy = extract_pairs(model, tokenizer, pairs, name="joy", position="mean")
save_vector(joy, "vectors/joy.safetensors")
model.save_pretrained("served")
tokenizer.save_pretrained("served")

os.environ |= {"STEERFAST_VECTORS": "vectors", "VLLM_PLUGINS": "steerfast,steerfast_http"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GB; only a CPU looks at it
command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model=served"]
command += ["--port=8321", "--max-model-len=512", "--block-size=32", "--enforce-eager"]
server = subprocess.Popen(command)
try:
    # The client asks again until the server is up: a minute on a CPU.
    client = OpenAI(base_url="http://localhost:8321/v1", api_key="-", max_retries=60)
    ask = {"model": "served", "prompt": "My day was", "max_tokens": 24, "temperature": 0}
    for dose in (0.0, 0.2, -0.2):  # a plan is JSON; vectors go by the names of their files
        term = {"vector": "joy", "layers": [layer], "coefficient": dose, "scale": "stream"}
        steered = openai_args({"terms": [term]}) if dose else {}
        answer = client.completions.create(**ask, extra_body=steered)
        print(f"{dose:+.1f}: {answer.choices[0].text!r}")
finally:
    server.terminate()
