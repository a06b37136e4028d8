"""Whether an engine steers: which vLLM, which model, which features; and that all of its workers do.

The settings that every process must share are put into ``VllmConfig.additional_config["steerfast"]``, which vLLM hands to all of
them and hashes into the key of its compile cache, so that artefacts made with and without steering never meet.
"""

from __future__ import annotations

import logging
from typing import Any

from steerfast import __version__
from steerfast.errors import SteerfastError
from steerfast.serving.settings import Settings
from steerfast.serving.vllm.patching import wrap
from steerfast.serving.wire import FIELD

logger = logging.getLogger("steerfast")
SUPPORTED = (0, 32)  # major and minor; the internals that are patched move with every minor release
ARCHITECTURES = frozenset({"LlamaForCausalLM"})
KEY = "steerfast"  # of additional_config
STATUS = "steerfast_status"  # a method of every worker
_ASKED = "steerfast_asked"


def check_version() -> None:
    """SteerfastError for a vLLM that this plugin was not tried with."""
    from vllm import __version__ as found

    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers != SUPPORTED:
        raise SteerfastError(
            f"steerfast {__version__} steers vLLM {'.'.join(map(str, SUPPORTED))}, and this is {found}; install that one, "
            "or leave steerfast out of VLLM_PLUGINS to serve unsteered"
        )


def obstacle(config: Any) -> str | None:
    """Why an engine of this VllmConfig cannot steer, for its operator; None if it can."""
    model, parallel = config.model_config, config.parallel_config
    names = list(getattr(model, "architectures", None) or [])
    if not names or names[0] not in ARCHITECTURES:
        return f"its architecture is {names}; steered are {', '.join(sorted(ARCHITECTURES))}"
    if getattr(model, "runner_type", "generate") != "generate":
        return "it does not generate text"
    if model.using_transformers_backend():
        return "it runs on vLLM's Transformers backend; start it with model_impl='vllm'"
    if parallel.enable_dbo or getattr(parallel, "ubatch_size", 0) > 1:
        return "micro-batching shows a layer rows out of place; start it without enable_dbo"
    if getattr(parallel, "prefill_context_parallel_size", 1) > 1:
        return "prefill context parallelism spreads rows over ranks"
    if config.kv_transfer_config is not None:
        return "a KV connector shares keys and values by rules of its own"
    speculative = config.speculative_config
    if speculative is not None and speculative.method == "extract_hidden_states":
        return "extract_hidden_states reads the stream ahead of its steering"
    return None


def settings_of(config: Any) -> Settings:
    """The settings of an engine, in any of its processes."""
    extra = config.additional_config
    engine = extra.get(KEY) if isinstance(extra, dict) else None
    return Settings.read(engine)


def is_on(config: Any) -> bool:
    """Whether the front end that made this configuration had the plugin, and nothing stood in the way."""
    extra = config.additional_config
    return isinstance(extra, dict) and KEY in extra and obstacle(config) is None


def install() -> None:
    """Settle the settings with the configuration, and ask the workers once they are there; the front end asks
    them all again, engine core included, ahead of its first steered request."""
    wrap("vllm.engine.arg_utils:EngineArgs", "create_engine_config", _settle)
    wrap("vllm.v1.engine.core:EngineCore", "__init__", _ask_workers)
    wrap("vllm.v1.engine.core:EngineCore", "collective_rpc", _sign)
    wrap("vllm.v1.engine.llm_engine:LLMEngine", "add_request", _ask_first)


def _settle(original: Any, args: Any, *more: Any, **kwargs: Any) -> Any:
    config = original(args, *more, **kwargs)
    if not isinstance(config.additional_config, dict):
        raise SteerfastError(
            f"additional_config is a {type(config.additional_config).__name__}; steerfast keeps its settings in a dict there"
        )
    settings = settings_of(config)
    config.additional_config = {
        **config.additional_config,
        KEY: {**settings.engine(), "version": __version__},
    }
    reason = obstacle(config)
    if reason is not None:
        logger.warning("steerfast: this engine refuses steered requests, because %s", reason)
    return config


def _ask_workers(original: Any, engine: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(engine, vllm_config, *args, **kwargs)
    if is_on(vllm_config):
        states = engine.model_executor.collective_rpc(STATUS)
        for rank, state in enumerate(states):
            if not state.get("armed") or state.get("version") != __version__:
                raise SteerfastError(
                    f"worker {rank} cannot steer: {state.get('reason') or state}; install steerfast {__version__} on "
                    "every machine, or leave it out of VLLM_PLUGINS everywhere"
                )
        logger.info("steerfast %s: %d workers armed, %s", __version__, len(states), states[0])
    return result


def merged(workers: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The status of all workers in one; None if any part is not armed. They hold the same plans, so the first speaks for all."""
    if not workers or not all(one.get("armed") and one.get("engine") for one in workers):
        return None
    return {**workers[0], "workers": len(workers)}


def _sign(original: Any, engine: Any, method: Any, *args: Any, **kwargs: Any) -> Any:
    """The engine core's word that it is patched, too: without its keys, cache blocks would be mistaken."""
    result = original(engine, method, *args, **kwargs)
    if method == STATUS:
        return [{**one, "engine": __version__} for one in result]
    return result


def _steered(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of add_request(request_id, prompt, params, ...) is of a steered request."""
    params = kwargs.get("params", args[2] if len(args) > 2 else None)
    extra = getattr(params, "extra_args", None) or {}
    return extra.get(FIELD) is not None


def _unarmed(error: object) -> SteerfastError:
    return SteerfastError(
        f"this engine was started by a process with steerfast, but not all of its own have it ({error}); the request would "
        "run unsteered. Install it on every machine, and let VLLM_PLUGINS name it everywhere"
    )


def _ask_first(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    if _steered(args, kwargs) and is_on(engine.vllm_config) and not hasattr(engine, _ASKED):
        try:
            status = merged(engine.collective_rpc(STATUS))
        except Exception as error:
            raise _unarmed(error) from error
        if status is None:
            raise _unarmed("see its log")
        setattr(engine, _ASKED, True)
    return original(engine, *args, **kwargs)


async def ask(engine: Any) -> None:
    """Ahead of an engine's first steered request: SteerfastError where a part of it is not armed."""
    if is_on(engine.vllm_config) and not hasattr(engine, _ASKED):
        try:
            status = merged(await engine.collective_rpc(STATUS))
        except Exception as error:
            raise _unarmed(error) from error
        if status is None:
            raise _unarmed("see its log")
        setattr(engine, _ASKED, True)
