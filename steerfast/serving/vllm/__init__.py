"""vLLM, steered per request: the entry point of the plugin.

vLLM calls ``register`` in every process of an engine, perhaps several times. It only logs a plugin whose module
cannot be imported, and then serves without it; an exception inside ``register`` ends the start. So nothing is imported up
here, and whatever can go wrong goes wrong inside.
"""

from __future__ import annotations


def register() -> None:
    """Patch vLLM in this process: front end, engine core, worker; each part acts where it runs.

    Raises SteerfastError for a version of vLLM that is not known to work, or that lacks what is patched.
    """
    from steerfast.serving.vllm import admission, ahead, arming, front, prefix_cache, runners

    arming.check_version()
    for part in (arming, front, ahead, prefix_cache, admission, runners):
        part.install()


def endpoints() -> object:
    """The HTTP endpoints, for vLLM's API server: named in ``VLLM_PLUGINS`` to be loaded."""
    from steerfast.serving.vllm.endpoints import Endpoints

    return Endpoints()
