"""Costs read from pieces of programs that libtpu 0.0.50 compiled for v5e, v5p and v6e, trimmed.

What they compute is known: the programs were a layer loop of known length over known shapes.
"""

import pytest

from jaxterm.preflight import hlo_costs, hlo_kept, hlo_text

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=16\n\n"

# A loop of six layers that runs `LAYER`, with neither its trip count nor its bound written at it.
LOOP = """
%condition (wide.param.1: (s32[], bf16[1,8192,128], s32[])) -> pred[] {
  %constant.65.clone.1 = s32[]{:T(128)} constant(6)
  %wide.param.1 = (s32[]{:T(128)}, bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) parameter(0)
  %get-tuple-element.212 = s32[]{:T(128)} get-tuple-element(%wide.param.1), index=0, metadata={op_name="jit(step)/jvp()/while" stack_frame_id=6}
  ROOT %lt.10 = pred[]{:T(512)} compare(%get-tuple-element.212, %constant.65.clone.1), direction=LT
}

%body (wide.param.4: (s32[], bf16[1,8192,128], s32[])) -> (s32[], bf16[1,8192,128], s32[]) {
  %wide.param.4 = (s32[]{:T(128)}, bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) parameter(0)
  %get-tuple-element.284 = s32[]{:T(128)} get-tuple-element(%wide.param.4), index=0
  %copy.6 = s32[]{:T(128)S(6)} copy(%get-tuple-element.284)
  %get-tuple-element.295 = s32[]{:T(128)} get-tuple-element(%wide.param.4), index=2
  %add.67 = s32[]{:T(128)} add(%copy.6, %get-tuple-element.295), backend_config={"flag_configs":[],"aliasing_operands":{"lists":[{"indices":["0","2"]}]}}
  %shard = bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%wide.param.4), index=1
LAYER
  ROOT %tuple.49 = (s32[]{:T(128)}, bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) tuple(%add.67, %shard, %get-tuple-element.295)
}

ENTRY %main.8_spmd (param.5: bf16[1,8192,128]) -> bf16[1,8192,128] {
  %constant.71.clone = s32[]{:T(128)} constant(0)
  %constant.62.clone.1 = s32[]{:T(128)} constant(1)
  %param.5 = bf16[1,8192,128]{2,1,0:T(8,128)(2,1)} parameter(0), sharding={mesh['a'=16], [{}, {}, {'a'}]}
  %copy.3 = s32[]{:T(128)} copy(%constant.71.clone)
  %copy-start.3 = (bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,8192,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%param.5)
  %copy-done.3 = bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start.3)
  %tuple.60 = (s32[]{:T(128)}, bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) tuple(%copy.3, %copy-done.3, %constant.62.clone.1)
  %while.28 = (s32[]{:T(128)}, bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) while(%tuple.60), condition=%condition, body=%body, metadata={op_name="jit(step)/jvp()/while" stack_frame_id=6}
  ROOT %get-tuple-element.166 = bf16[1,8192,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while.28), index=1
}
"""  # noqa: E501

# v5e: an all-gather goes on beside a product; it is written three times.
ASYNC_FUSIONS = """
%fused_computation.55 (param_0.178: bf16[1,8192,128]) -> (bf16[1,8192,128], bf16[1,8192,2048], s32[2], u32[]) {
  %param_0.178 = bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.26 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.178), channel_id=9, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="0"}, metadata={op_name="jit(step)/jvp()/while/body/convert_element_type" stack_frame_id=11}
  ROOT %custom-call.2 = (bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) custom-call(%all-gather.26), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.91 (param_0.183: bf16[1,8192,128], param_1.153: bf16[1,8192,2048], param_2.78: s32[2], param_3.38: u32[], param_9.2: bf16[2048,8192], /*index=5*/param_10.3: bf16[4096,2048]) -> (bf16[4096,8192], bf16[1,8192,2048], s32[2], u32[]) {
  %param_10.3 = bf16[4096,2048]{1,0:T(8,128)(2,1)} parameter(5)
  %param_9.2 = bf16[2048,8192]{1,0:T(8,128)(2,1)} parameter(4)
  %convolution.35 = bf16[4096,8192]{1,0:T(8,128)(2,1)} convolution(%param_10.3, %param_9.2), dim_labels=bf_io->bf
  %param_0.183 = bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.153 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.28 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.183), channel_id=9, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="0"}
  %param_2.78 = s32[2]{0:S(4)} parameter(2)
  %param_3.38 = u32[]{:S(2)} parameter(3)
  ROOT %tuple.55 = (bf16[4096,8192]{1,0:T(8,128)(2,1)}, bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) tuple(%convolution.35, %all-gather.28, %param_2.78, %param_3.38)
}

%fused_computation.57 (param_0.186: bf16[1,8192,128], param_1.154: bf16[1,8192,2048], param_2.80: s32[2], param_3.40: u32[]) -> bf16[1,8192,2048] {
  %param_0.186 = bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %param_1.154 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  %all-gather.30 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.186), channel_id=9, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={2}, use_global_device_ids=true, frontend_attributes={chain_id="0"}
  %param_2.80 = s32[2]{0:S(4)} parameter(2)
  %param_3.40 = u32[]{:S(2)} parameter(3)
  ROOT %custom-call.4 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%param_0.186, %param_1.154, %all-gather.30, %param_2.80, %param_3.40), custom_call_target="AsyncCollectiveDone"
}
"""  # noqa: E501
ASYNC_LAYER = """
  %weight = bf16[2048,8192]{1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %stream = bf16[4096,2048]{1,0:T(8,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  %async-collective-start = (bf16[1,8192,128]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) fusion(%shard), kind=kCustom, output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.55
  %g0 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%async-collective-start), index=1
  %g1 = s32[2]{0:S(4)} get-tuple-element(%async-collective-start), index=2
  %g2 = u32[]{:S(2)} get-tuple-element(%async-collective-start), index=3
  %fusion.91 = (bf16[4096,8192]{1,0:T(8,128)(2,1)}, bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)}, s32[2]{0:S(4)}, u32[]{:S(2)}) fusion(%shard, %g0, %g1, %g2, %weight, /*index=5*/%stream), kind=kOutput, output_to_operand_aliasing={{1}: (1, {}), {2}: (2, {})}, calls=%async_collective_fusion.91
  %g3 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%fusion.91), index=1
  %async-collective-done = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)S(1)} fusion(%shard, %g3, %g1, %g2), kind=kCustom, output_to_operand_aliasing={{}: (1, {})}, calls=%fused_computation.57
"""  # noqa: E501

# v6e: a SparseCore gathers.
CALLED = """
%called_computation.1 (param_0.191: bf16[1,8192,128]) -> bf16[1,8192,2048] {
  %param_0.191 = bf16[1,8192,128]{2,1,0:T(8,128)(2,1)} parameter(0), backend_config={"compute_type":"COMPUTE_TYPE_SCALAR"}
  ROOT %all-gather.23 = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.191), channel_id=8, replica_groups=mesh['axis_0'=16] {'axis_0'}, dimensions={2}, use_global_device_ids=true, frontend_attributes={is_spmd_generated="true"}
}, execution_thread="sparsecore"
"""  # noqa: E501
CALLING_LAYER = """
  %all-gather.24.cloned.1.call-start = ((), (), (s32[1]{0:T(128)S(2)})) call-start(), async_execution_thread="sparsecore", to_apply=%called_computation.1, frontend_attributes={is_spmd_generated="true"}
  %all-gather.24.cloned.1.call-update = ((bf16[1,8192,128]{2,1,0:T(8,128)(2,1)}), bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)}) call-update(%all-gather.24.cloned.1.call-start, %shard)
  %all-gather.24.cloned.1.call-done = bf16[1,8192,2048]{2,1,0:T(8,128)(2,1)} call-done(%all-gather.24.cloned.1.call-update)
"""  # noqa: E501

# The general forms of XLA, which other versions and platforms print.
PAIR_LAYER = """
  %all-gather-start = (bf16[1,8192,128]{2,1,0}, bf16[1,8192,2048]{2,1,0}) all-gather-start(%shard), channel_id=1, replica_groups=[1,16]<=[16], dimensions={2}, use_global_device_ids=true
  %all-gather-done = bf16[1,8192,2048]{2,1,0} all-gather-done(%all-gather-start)
"""  # noqa: E501
WRAPPED = """
%async_computation (param_0: bf16[1,8192,128]) -> bf16[1,8192,2048] {
  %param_0 = bf16[1,8192,128]{2,1,0} parameter(0)
  ROOT %all-gather.1 = bf16[1,8192,2048]{2,1,0} all-gather(%param_0), replica_groups={}, dimensions={2}
}
"""  # noqa: E501
WRAPPING_LAYER = """
  %async-start = ((bf16[1,8192,128]{2,1,0}), bf16[1,8192,2048]{2,1,0}, u32[]) async-start(%shard), calls=%async_computation
  %async-update = ((bf16[1,8192,128]{2,1,0}), bf16[1,8192,2048]{2,1,0}, u32[]) async-update(%async-start), calls=%async_computation
  %async-done = bf16[1,8192,2048]{2,1,0} async-done(%async-update), calls=%async_computation
"""  # noqa: E501


@pytest.mark.parametrize(
    ("computations", "layer", "flops"),
    [
        (ASYNC_FUSIONS, ASYNC_LAYER, 6 * 2 * 4096 * 2048 * 8192),
        (CALLED, CALLING_LAYER, 0),
        ("", PAIR_LAYER, 0),
        (WRAPPED, WRAPPING_LAYER, 0),
    ],
    ids=["fusions", "call", "pair", "wrapped"],
)
def test_an_asynchronous_gather_counts_once_in_each_layer(computations, layer, flops):
    costs = hlo_costs.read(HEADER + computations + LOOP.replace("LAYER", layer))
    size = 8192 * 2048 * 2
    assert costs.by_kind() == {
        "all-gather": {"count": 6, "bytes": 6 * size, "wire_bytes": 6 * size * 15 // 16}
    }
    assert (costs.dot_flops, costs.kernels, costs.unknown_loops) == (flops, (), ())


def test_a_loop_whose_bound_is_not_to_be_seen_is_told():
    text = LOOP.replace("%constant.65.clone.1), direction", "%get-tuple-element.212), direction")
    assert text != LOOP
    costs = hlo_costs.read(HEADER + text.replace("LAYER", PAIR_LAYER))
    assert [(loop.name, loop.op_name) for loop in costs.unknown_loops] == [
        ("while.28", "jit(step)/jvp()/while")
    ]
    assert costs.by_kind()["all-gather"]["count"] == 1


# v5p, fsdp=4 beside tensor=2: a reduce-scatter is a fusion of an all-reduce and a slice.
SCATTER = """
%all-reduce-scatter (input: bf16[2048,1024]) -> bf16[2048,256] {
  %input = bf16[2048,1024]{1,0:T(8,128)(2,1)} parameter(0)
  %all-reduce.75 = bf16[2048,1024]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=122, replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true, to_apply=%region_34.39.clone.1.clone, frontend_attributes={from-cross-replica-sharding="true"}
  %constant.1790 = u32[] constant(0)
  %constant.shard_id_table = u32[8]{0:T(128)} constant({0, 0, 1, 1, 2, 2, 3, 3})
  %partition-id.55 = u32[] partition-id()
  %dynamic-slice.481 = u32[1]{0:T(128)} dynamic-slice(%constant.shard_id_table, %partition-id.55), dynamic_slice_sizes={1}
  %bitcast.304 = u32[]{:T(128)} bitcast(%dynamic-slice.481)
  ROOT %dynamic-slice.482 = bf16[2048,256]{1,0:T(8,128)(2,1)} dynamic-slice(%all-reduce.75, %constant.1790, %bitcast.304), dynamic_slice_sizes={2048,256}
}

ENTRY %main (gradient: bf16[2048,1024]) -> bf16[2048,256] {
  %gradient = bf16[2048,1024]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %fusion.10 = bf16[2048,256]{1,0:T(8,128)(2,1)} fusion(%gradient), kind=kCustom, calls=%all-reduce-scatter, frontend_attributes={is_spmd_generated="true"}
}
"""  # noqa: E501


def test_a_fused_reduce_scatter():
    size = 2048 * 1024 * 2
    assert hlo_costs.read(HEADER + SCATTER).by_kind() == {
        "reduce-scatter": {"count": 1, "bytes": size, "wire_bytes": size * 3 // 4}
    }
    whole = SCATTER.replace("kind=kCustom", "kind=kLoop")
    assert hlo_costs.read(HEADER + whole).by_kind() == {
        "all-reduce": {"count": 1, "bytes": size, "wire_bytes": size * 6 // 4}
    }


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,2,4,6},{1,3,5,7}}", 4),
        ("{{0},{1}}", 1),
        ("{}", 16),
        ("[2,4]<=[8]", 4),
        ("[4,2]<=[2,4]T(1,0)", 2),
        ("mesh['data'=1,'fsdp'=4,'context'=1,'tensor'=2] {'fsdp'}", 4),
        ("mesh['data'=2,'fsdp'=4,'context'=1,'tensor'=2] {'data','fsdp'}", 8),
        ("mesh['a'=8,'b'=2], device_ids=([4,4]T(1,0)) {'a':(2)4}", 4),
    ],
)
def test_every_way_of_writing_groups(groups, size):
    text = SCATTER.replace("{{0,2,4,6},{1,3,5,7}}", groups).replace("kCustom", "kLoop")
    (found,) = hlo_costs.read(HEADER + text).collectives
    assert found.group_size == size


PRODUCT = """
ENTRY %main (a: LEFT, b: RIGHT) -> RESULT {
  %a = LEFT parameter(0)
  %b = RIGHT parameter(1)
  ROOT %convolution-base-dilated.36 = RESULT convolution(%a, %b), WINDOW
}
"""


@pytest.mark.parametrize(
    ("left", "right", "result", "window"),
    [
        # Attention's logits, 2 rows and 2 kv heads of 2 heads each; its backward pass; its output.
        (
            "bf16[2,2048,2,128,1]", "bf16[2,2048,2,2,128]", "f32[2,2,2048,2048,2]",
            "window={size=2x2x2 pad=0_0x0_0x1_1 lhs_dilate=2x2x1 rhs_reversal=0x0x1}, "
            "dim_labels=0b1f2_0o12i->01bf2",
        ),
        (
            "bf16[2,2048,2,128,1]", "bf16[2,2,128,2,2048]", "bf16[2,2,2,2048,2048]",
            "window={size=2x2x2 stride=2x2x1 pad=1_1x1_1x1_1 rhs_reversal=1x1x1}, "
            "dim_labels=0b1f2_01i2o->012fb",
        ),
        (
            "f32[2,2,2048,2048,2]", "bf16[2,2048,2,2,128]", "f32[2,2,2048,128,1]",
            "window={size=2x2x2 lhs_dilate=2x2x1}, dim_labels=01bf2_0i12o->01bf2",
        ),
    ],
)  # fmt: skip
def test_flops_of_a_product_with_batch_dims(left, right, result, window):
    text = PRODUCT.replace("LEFT", left).replace("RIGHT", right)
    text = text.replace("RESULT", result).replace("WINDOW", window)
    pairs = 2 * 2 * 2 * 2048 * 2048
    assert hlo_costs.read(HEADER + text).dot_flops == 2 * pairs * 128


# tokamax puts line breaks into its kernel's metadata.
KERNELS = """
ENTRY %main (q: bf16[2,4,1024,128]) -> bf16[2,4,1024,128] {
  %q = bf16[2,4,1024,128]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %splash_mqa_fwd_segmented_residuals.19 = (bf16[2,4,1024,128]{3,2,1,0:T(8,128)(2,1)}, f32[2,4,1024,128]{3,2,1,0:T(8,128)}) custom-call(%q), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[2,4,1024,128]{3,2,1,0}}, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512}"
}}, metadata={op_name="jit(f)/jvp()/while/body/vmap(jit(_splash_attention))/splash_mqa_fwd_segmented_residuals/splash_mqa_fwd_segmented_residuals/pallas_call" stack_frame_id=17}, backend_config={"custom_call_config":{"body":"TUzvUg","cost_estimate":{"flops":"4294967296","transcendentals":"8388608","bytes_accessed":"14745600"},"needs_layout_passes":true}}
  %pallas_call.54 = bf16[2,4,1024,128]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%splash_mqa_fwd_segmented_residuals.19), index=0, frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512, \\"block_kv\\": 512}"
}}, metadata={op_name="jit(f)/pallas_call"}
  ROOT %closed_call.3 = bf16[2,4,1024,128]{3,2,1,0:T(8,128)(2,1)} custom-call(%pallas_call.54), custom_call_target="tpu_custom_call", metadata={op_name="jit(f)/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzvUg"}}
}
"""  # noqa: E501


def test_kernels():
    costs = hlo_costs.read(HEADER + KERNELS)
    found = [(kernel.name, kernel.flops, kernel.times) for kernel in costs.kernels]
    assert found == [("splash_mqa_fwd_segmented_residuals", 4294967296, 1), ("closed_call", 0, 1)]
    assert (costs.kernel_flops, costs.dot_flops) == (4294967296, 0)


# Activations offloaded to the host (memory space 5) by a loop of six layers, and fetched by the
# next.
OFFLOAD = """
%condition (p.0: (s32[], f32[6,1024,1024])) -> pred[] {
  %p.0 = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) parameter(0)
  %six = s32[]{:T(128)} constant(6)
  %i.0 = s32[]{:T(128)} get-tuple-element(%p.0), index=0
  ROOT %lt.0 = pred[]{:T(512)} compare(%six, %i.0), direction=GT
}

%forward (p.1: (s32[], f32[6,1024,1024])) -> (s32[], f32[6,1024,1024]) {
  %zero = s32[]{:T(128)} constant(0)
  %one = s32[]{:T(128)} constant(1)
  %p.1 = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %stack = f32[6,1024,1024]{2,1,0:T(8,128)S(5)} get-tuple-element(%p.1), index=1
  %x = f32[1,1024,1024]{2,1,0:T(8,128)} custom-call(), custom_call_target="AllocateBuffer"
  %dynamic-update-slice-start = ((f32[6,1024,1024]{2,1,0:T(8,128)S(5)}, f32[1,1024,1024]{2,1,0:T(8,128)}, s32[]{:T(128)}, s32[]{:T(128)}, s32[]{:T(128)}), f32[6,1024,1024]{2,1,0:T(8,128)S(5)}, u32[]{:S(2)}) dynamic-update-slice-start(%stack, %x, %i.1, %zero, %zero)
  %dynamic-update-slice-done = f32[6,1024,1024]{2,1,0:T(8,128)S(5)} dynamic-update-slice-done(%dynamic-update-slice-start)
  %add.9 = s32[]{:T(128)} add(%i.1, %one)
  ROOT %tuple.21 = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) tuple(%add.9, %dynamic-update-slice-done)
}

%backward (p.2: (s32[], f32[6,1024,1024])) -> (s32[], f32[6,1024,1024]) {
  %zero.2 = s32[]{:T(128)} constant(0)
  %one.2 = s32[]{:T(128)} constant(1)
  %p.2 = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) parameter(0)
  %i.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %stack.2 = f32[6,1024,1024]{2,1,0:T(8,128)S(5)} get-tuple-element(%p.2), index=1
  %dynamic-slice-start = ((f32[6,1024,1024]{2,1,0:T(8,128)S(5)}, s32[]{:T(128)}, s32[]{:T(128)}, s32[]{:T(128)}), f32[1,1024,1024]{2,1,0:T(8,128)}, u32[]{:S(2)}) dynamic-slice-start(%stack.2, %i.2, %zero.2, %zero.2), dynamic_slice_sizes={1,1024,1024}
  %dynamic-slice-done = f32[1,1024,1024]{2,1,0:T(8,128)} dynamic-slice-done(%dynamic-slice-start)
  %add.11 = s32[]{:T(128)} add(%i.2, %one.2)
  ROOT %tuple.24 = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) tuple(%add.11, %stack.2)
}

ENTRY %main (moment: f32[256]) -> f32[256] {
  %moment = f32[256]{0:T(256)S(5)} parameter(0)
  %copy-start = (f32[256]{0:T(256)}, f32[256]{0:T(256)S(5)}, u32[]{:S(2)}) copy-start(%moment)
  %copy-done = f32[256]{0:T(256)} copy-done(%copy-start)
  %zero.3 = s32[]{:T(128)} constant(0)
  %custom-call.2 = f32[6,1024,1024]{2,1,0:T(8,128)S(5)} custom-call(), custom_call_target="AllocateBuffer"
  %tuple.19 = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) tuple(%zero.3, %custom-call.2)
  %while = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) while(%tuple.19), condition=%condition, body=%forward
  %get-tuple-element.115 = f32[6,1024,1024]{2,1,0:T(8,128)S(5)} get-tuple-element(%while), index=1
  %tuple.25 = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) tuple(%zero.3, %get-tuple-element.115)
  %while.1 = (s32[]{:T(128)}, f32[6,1024,1024]{2,1,0:T(8,128)S(5)}) while(%tuple.25), condition=%condition, body=%backward
  ROOT %copy = f32[256]{0:T(256)} copy(%copy-done)
}
"""  # noqa: E501


def test_transfers_to_and_from_the_host():
    costs = hlo_costs.read(HEADER + OFFLOAD)
    size = 6 * 1024 * 1024 * 4
    assert (costs.to_host_bytes, costs.from_host_bytes) == (size, size + 256 * 4)
    (kept,) = hlo_kept.kept_stacks(HEADER + OFFLOAD, 6)
    assert (kept.bytes, kept.space) == (size, hlo_text.HOST_MEMORY)
    assert not hlo_kept.kept_stacks(HEADER + OFFLOAD, 5)


def test_bytes_of_every_kind_of_element():
    text = "(pred[3], s4[5]{0:E(4)}, bf16[<=2,3]{1,0}, f8e4m3fn[7], c64[], token[], f32[0,4])"
    assert [shape.bytes for shape in hlo_text.shapes(text)] == [3, 3, 12, 7, 8, 0, 0]
