"""Prometheus metrics of a steered engine, where prometheus_client is (vLLM serves them at /metrics)."""

from __future__ import annotations

from typing import Any


class _Nothing:
    """Stands in where there is no Prometheus."""

    def inc(self, amount: float = 1.0) -> None: ...
    def set(self, value: float) -> None: ...


def _metric(kind: str, name: str, about: str) -> Any:
    try:
        import prometheus_client
    except ImportError:
        return _Nothing()
    more = {"multiprocess_mode": "mostrecent"} if kind == "Gauge" else {}
    return getattr(prometheus_client, kind)(f"steerfast:{name}", about, **more)


STEERED = _metric("Counter", "steered_requests", "Requests with a plan that reached the engine")
REFUSED = _metric("Counter", "refused_requests", "Requests refused because of their plan")
SLOTS = _metric("Gauge", "slots_in_use", "Slots that plans of live requests hold, on worker 0")
SLOT_CAPACITY = _metric("Gauge", "slots", "Slots there are")
ROUTE_SECONDS = _metric("Gauge", "route_seconds", "Host time spent on routes so far, on worker 0")


def show(status: dict[str, Any]) -> None:
    """Set the gauges to what a worker's status says."""
    SLOTS.set(status["slots_in_use"])
    SLOT_CAPACITY.set(status["slots"])
    ROUTE_SECONDS.set(status["route_seconds"])
