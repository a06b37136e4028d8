"""Jobs over a Ray cluster: an actor a model copy, and the trials come back to the folder that asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from steerfast.experiments.trials import Job, Result


class RaySpread:
    """Runs jobs on as many workers as the cluster has room for; each loads the model once.

    model, dtype: as for ``load_model``; every node must be able to load it. cpus, gpus: of each worker. Uses the
    cluster that RAY_ADDRESS names, or starts Ray on this machine. Raises SteerfastError if Ray is not installed.
    """

    def __init__(self, model: str | None, dtype: str, cpus: float = 2.0, gpus: float = 0.0) -> None:
        from steerfast.errors import SteerfastError

        try:
            import ray
        except ImportError as error:
            raise SteerfastError("--ray needs the package ray: pip install ray") from error
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        self._ray: Any = ray
        room = ray.cluster_resources()
        each = [room.get("CPU", 0.0) / cpus] + ([room.get("GPU", 0.0) / gpus] if gpus else [])
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus)(Worker)
        self._workers = [remote.remote(model, dtype) for _ in range(max(1, int(min(each))))]

    def __call__(self, jobs: Sequence[Job]) -> Iterator[tuple[int, Sequence[Result]]]:
        """(number of the job, its results), as they come."""
        idle = list(self._workers)
        running: dict[Any, tuple[int, Any]] = {}
        waiting = list(enumerate(jobs))
        while waiting or running:
            while idle and waiting:
                number, job = waiting.pop(0)
                worker = idle.pop()
                running[worker.run.remote(job.task)] = (number, worker)
            (done,), _ = self._ray.wait(list(running), num_returns=1)
            number, worker = running.pop(done)
            idle.append(worker)
            yield number, self._ray.get(done)


class Worker:
    """A model in a process of its own."""

    def __init__(self, model: str | None, dtype: str) -> None:
        import torch

        from steerfast.experiments.measure import Laboratory
        from steerfast.models.load import load_model

        self.laboratory = Laboratory(load_model(model, dtype=getattr(torch, dtype)))

    def run(self, task: Any) -> list[Result]:
        return self.laboratory.run(task)
