"""The engine's runners: the model of each is armed once it is loaded, and every worker can tell."""

from __future__ import annotations

from typing import Any

from steerfast import __version__
from steerfast.serving.vllm import runner_v1, runner_v2
from steerfast.serving.vllm.patching import wrap
from steerfast.serving.vllm.worker import arm


def install() -> None:
    """Arm the model of each runner once it is loaded, and let every worker tell."""
    from vllm.v1.worker.worker_base import WorkerBase

    WorkerBase.steerfast_status = _status
    wrap("vllm.v1.worker.gpu_model_runner:GPUModelRunner", "load_model", _load)
    wrap("vllm.v1.worker.cpu_model_runner:CPUModelRunner", "load_model", _load)
    runner_v1.install()
    runner_v2.install()


def _load(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(runner, *args, **kwargs)
    arm(runner, runner.get_model(), runner.vllm_config, runner.device)
    return result


def _status(worker: Any) -> dict[str, Any]:
    """Stands in vLLM's workers, for ``collective_rpc``."""
    steering = getattr(getattr(worker, "model_runner", None), "steerfast", None)
    if steering is None:
        return {"armed": False, "version": __version__, "reason": "its model was not armed"}
    status: dict[str, Any] = steering.status()
    return status
