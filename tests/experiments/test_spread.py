"""Jobs over a Ray cluster, on this machine: the same trials as without."""

from __future__ import annotations

import pytest
import torch

from steerfast import SteeringVector
from steerfast.errors import SteerfastError
from steerfast.experiments import questions
from steerfast.experiments.measure import Laboratory
from steerfast.experiments.schemes import individual
from steerfast.experiments.trials import Trials


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    from steerfast.experiments.spread import RaySpread

    with pytest.raises(SteerfastError, match="pip install ray"):
        RaySpread("model", "float32")


def test_a_cluster_gives_the_same_trials(tiny, tiny_folder, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from steerfast.experiments.spread import RaySpread

    asked = questions.load(None, "myopic")[:3]
    vector = SteeringVector("v", {1: torch.ones(64)})
    laboratory = Laboratory(tiny)
    jobs = [laboratory.answers([individual(vector, 1, c), None], asked) for c in (1.0, 2.0, 3.0)]
    here = Trials(tmp_path / "here").complete(jobs)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        spread = RaySpread(str(tiny_folder), "float32", cpus=1.0)
        there = Trials(tmp_path / "there").complete(jobs, spread=spread)
    finally:
        ray.shutdown()
    assert there == here
