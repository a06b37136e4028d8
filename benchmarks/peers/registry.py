"""All peers by name."""

from __future__ import annotations

from peers import apart, baselines, hooked, traced
from peers.peer import Peer

PEERS: dict[str, Peer] = {
    peer.name: peer for module in (baselines, hooked, traced, apart) for peer in module.PEERS
}


def peers_of(environment: str) -> dict[str, Peer]:
    """Those that run in one environment, by name."""
    return {name: peer for name, peer in PEERS.items() if peer.environment == environment}
