"""Sites: the places of a model where a row can be steered, as rows of the table."""

from __future__ import annotations

from typing import Literal

Site = Literal["resid_pre", "resid_mid", "resid_post"]


def site_count(num_layers: int) -> int:
    """resid_pre of layer 0, then resid_mid and resid_post of every layer."""
    return 1 + 2 * num_layers


def site_index(site: Site, layer: int) -> int:
    """The site's row in the table; ``resid_pre`` of layer l >= 1 is ``resid_post`` of l - 1."""
    if site == "resid_pre":
        return 0 if layer == 0 else site_index("resid_post", layer - 1)
    return 1 + 2 * layer + (site == "resid_post")


def site_name(index: int) -> str:
    """``resid_post[15]``: the inverse of ``site_index``, for messages and reports."""
    if index == 0:
        return "resid_pre[0]"
    layer, post = divmod(index - 1, 2)
    return f"{'resid_post' if post else 'resid_mid'}[{layer}]"
