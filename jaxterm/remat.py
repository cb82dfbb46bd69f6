"""What a block keeps of its forward pass for its backward pass, tensor by tensor.

Whatever is not kept is computed again; what is offloaded waits in the host's memory. The input of
every block is always there, since the next one is made from it.

For a block of Qwen3-14B and 32,768 tokens a chip in bfloat16:

    stream     the block's input                          336 MB
    q, k, v    projections, before norm and RoPE          336 + 67 + 67 MB
    attention  what attention gives, log of weights' sum  341 MB; computing it again costs most
    middle     the stream between attention and MLP       336 MB
    gate, up   projections inside the MLP                 1,141 + 1,141 MB
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name as name

from jaxterm import config

__all__ = ["POLICIES", "name", "policy_of"]

# Tensors that are kept. `none` computes nothing again, and keeps whatever that takes.
POLICIES: dict[str, tuple[str, ...]] = {
    "dots": ("q", "k", "v", "attention", "middle", "gate", "up"),
    "projections": ("q", "k", "v", "attention", "middle"),
    "attention": ("attention",),
    "full": (),
}


def policy_of(compute: config.ComputeConfig) -> Callable[..., Any]:
    """The policy for jax.checkpoint: a named one, with tensors more kept, or kept on the host."""
    if compute.remat == "none":
        return jax.checkpoint_policies.everything_saveable
    kept = {*POLICIES[compute.remat], *compute.remat_keep} - {*compute.remat_offload}
    if not compute.remat_offload:
        return jax.checkpoint_policies.save_only_these_names(*kept)
    return jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=sorted(kept),
        names_which_can_be_offloaded=list(compute.remat_offload),
        offload_src="device",
        offload_dst="pinned_host",
    )
