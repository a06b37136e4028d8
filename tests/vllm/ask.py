"""A program: answers of two engines, eager and compiled, as JSON, with every probability as its bits. python ask.py <model>."""

import json
import struct
import sys

from engines import answers, engine, prompt, sampling


def bits(value: float) -> str:
    return struct.pack("<d", value).hex()


def answered(folder: str, eager: bool) -> list[dict]:
    prompts = [prompt(length, seed) for seed, length in enumerate((140, 33, 64, 5))]
    params = sampling(None, 16, logprobs=5, prompt_logprobs=0)
    found = []
    with engine(folder, enforce_eager=eager, enable_prefix_caching=False) as llm:
        for batch in (prompts[:1], prompts):
            for out in answers(llm, batch, [params] * len(batch)):
                every = [*(out.prompt_logprobs or [])[1:], *out.outputs[0].logprobs]
                found.append(
                    {
                        "tokens": list(out.outputs[0].token_ids),
                        "logprobs": [
                            {
                                token: (bits(one.logprob), one.logprob)
                                for token, one in place.items()
                            }
                            for place in every
                        ],
                    }
                )
    return found


if __name__ == "__main__":
    print(json.dumps({how: answered(sys.argv[1], how == "eager") for how in ("eager", "compiled")}))
