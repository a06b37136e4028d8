"""What makes the config of any decoder tiny: rules by the name of a field, and the exceptions to them.

Where the defaults of a config leave out a kind of layer that its model knows, the exceptions put it in."""

from __future__ import annotations

import re
from typing import Any

VOCABULARY = 256
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None, "decoder_start_token_id": 1}
# Sizes by the name of the field, the first that matches; a default that is smaller stays.
SIZES: list[tuple[str, int]] = [
    (r"(.*_)?vocab(_size(_.*)?)?", VOCABULARY),
    (r"(original_)?max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length", 128),
    (r"max_(source|target)_positions|model_max_length|rel_extent", 128),
    (r"(.*_)?(sliding_window|window_size|sliding_window_size|window_len)|local_attention", 4),
    (r"(attention_|mamba_)?chunk_size|(index_)?block_size", 4),
    (
        r"index_topk(_blocks)?",
        8,
    ),  # the keys that it leaves out would hang on the last bits of scores
    (r"first_k_dense_replace|num_dense_layers|topk_group", 1),
    (r"n_group|num_expert_group|n_groups|o_groups|num_query_groups", 2),
    (r"num_experts_per_tok(en)?|moe_(top)?k|top_k_experts|zero_expert_num", 2),
    (r"(?!.*shared).*num_(local_)?experts|n_routed_experts", 4),
    (r"time_step_rank|mamba_dt_rank", 4),
    (r".*rank|(mamba_d_|ssm_)?state(_size)?", 16),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"qk_head_dim", 24),  # qk_nope_head_dim and qk_rope_head_dim
    (r"(.*_)?(num_key_value_heads|num_kv_heads|linear_num_key_heads|index_n_heads)", 2),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads|num_heads", 8),
    (r"(.*_)?(n_heads?|num_attention_heads|attention_heads|value_heads|linear_num_heads)", 4),
    (r"(.*_)?(head_?dim|d_head|dim_head|head_size|kv_channels)", 16),
    (r"(?!.*factor)(.*_)?(intermediate_size|ffn_dim|ffn_hidden_size|d_ssm)(_.*)?", 128),
    (r"d_?ff|dim_ff|d_inner|n_inner|feed_forward_size", 128),
    (r"(?!.*router)(.*_)?(hidden_size|d_model|n_embd|emb_dim)(_.*)?|lru_width", 64),
    (r"(.*_)?(embedding|embed|proj|adapter_in|adapter_out|adapter_input)_(dim|size)", 64),
]
LAYERS = re.compile(r"(num_|n_)?(hidden_|encoder_|decoder_)?layers?|num_blocks|depth")
# Factors that are 1 by default, so that one left out would not show.
FACTORS = re.compile(
    r"(?!.*(rotary|init|dim_|depthwise|channel))(.*_)?(multipliers?|scale|scaling|factor)"
)
# Without a default in the config and without another in the model.
NEEDED = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
}
# Not built or not run, and why.
LEFT_OUT: dict[str, str] = {
    "gemma3n": "its vision tower is timm's, which is not installed; gemma3n_text is the same decoder",
    "gemma4_assistant": "drafts for another model, from whose keys and values it reads",
    "gemma4_unified_assistant": "drafts for another model, from whose keys and values it reads",
}
# Their code cannot: a matrix stays in float32 and meets activations in bfloat16.
FLOAT32_ONLY = ("reformer", "xlnet")
# The same classes with other switches, where these wire the residual stream in another way.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("afmoe", {"mup_enabled": True}),
    ("bloom", {"apply_residual_connection_post_layernorm": True}),
    ("doge", {"is_moe": True, "num_experts": 4}),
    ("falcon", {"new_decoder_architecture": True}),
    ("falcon", {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}),
    ("falcon", {"parallel_attn": False}),
    ("gemma4_text", {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}),
    (
        "gemma4_text",
        {
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 32,
        },
    ),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("hyperclovax", {"use_post_norm": False}),
    ("lfm3", {"use_sandwich_norm": False}),
    ("mamba", {"residual_in_fp32": False}),
    ("opt", {"do_layer_norm_before": False}),
    ("opt", {"word_embed_proj_dim": 32}),
    ("qwen4_exp_text", {"ple_layer_ids": []}),
    ("rwkv", {"rescale_every": 2}),
    ("stablelm", {"use_parallel_residual": True}),
    ("xmod", {"pre_norm": True}),
]


def exceptions(layers: int) -> dict[str, dict[str, Any]]:
    """What the rules do not give, by the class of the config (or of the one within)."""

    def each(*kinds: Any) -> list[Any]:
        return [kinds[index % len(kinds)] for index in range(layers)]

    windows = {"layer_types": each("sliding_attention", "full_attention")}
    dense_first = {"mlp_layer_types": ["dense"] + ["sparse"] * (layers - 1)}
    window_last = {
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": layers // 2,
    }
    twice_as_wide = {  # its attention reads the layer's input and the embeddings
        "layers_block_type": each("linear_attention", "hybrid"),
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    }
    # The later layers read the keys and values of the last layer before them of their kind.
    shared = {**windows, "num_kv_shared_layers": min(layers // 2, layers - 2)}
    return {
        "BambaConfig": {"attn_layer_indices": list(range(1, layers, 2))},
        "BltConfig": {"num_hidden_layers": layers},  # its cache asks for it
        "CohereCompassTextConfig": {
            **windows,
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10000.0}
                for kind in windows["layer_types"]
            },
        },
        # Read by the model, without a default.
        "DbrxAttentionConfig": {"rope_theta": 10000.0, "clip_qkv": 8.0},
        "DeepseekV2Config": {"first_k_dense_replace": 1},
        "DeepseekV4Config": {
            "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}
        },
        "Dots1Config": {**window_last, "first_k_dense_replace": 1},
        "Dots3NoteTextConfig": {
            "head_dim": 24,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "swa_q_lora_rank": 16,
            "swa_kv_lora_rank": 16,
            "swa_head_dim": 24,
            "swa_qk_nope_head_dim": 16,
            "swa_v_head_dim": 16,
        },
        "FalconH1Config": {"mamba_d_head": 16},
        "Gemma3nTextConfig": shared,
        "Gemma4TextConfig": {**shared, "global_head_dim": 32},
        "Gemma4UnifiedTextConfig": {"global_head_dim": 32},
        "GPTNeoConfig": {"attention_types": [[each("global", "local"), 1]]},
        "GlmMoeDsaConfig": {"indexer_types": each("full", "shared")},
        "GraniteMoeSharedConfig": {"shared_intermediate_size": 128},
        "GraniteMoeSWAConfig": {"shared_intermediate_size": 128},
        "HunYuanMoEV1Config": {"num_experts": 4, "moe_topk": 2},
        "GraniteMoeHybridConfig": {"layer_types": each("linear_attention", "full_attention")},
        "JambaConfig": {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 0,
        },
        "LagunaConfig": {**windows, "num_attention_heads_per_layer": each(4, 8)},
        "Lfm2Config": {"layer_types": each("conv", "full_attention")},
        "Llama4TextConfig": {"moe_layers": list(range(1, layers, 2))},
        "MellumConfig": {**windows, **dense_first},
        "MinistralConfig": windows,
        "MiniMaxM3VLTextConfig": {
            "layer_types": each("full_attention", "minimax_m3_sparse"),
            **dense_first,
        },
        "InklingTextConfig": dense_first,
        "Cohere2MoeConfig": dense_first,
        "Lfm2MoeConfig": {"layer_types": each("conv", "full_attention")},
        "LongcatFlashConfig": {"head_dim": 8},  # of the rotary part
        # Of the sound's codebooks, as many as a text has.
        "MusicgenDecoderConfig": {"num_codebooks": 1},
        "MusicgenMelodyDecoderConfig": {"num_codebooks": 1},
        "Qwen4ExpTextConfig": {
            "ple_layer_ids": [1],
            "ple_embed_dim": 64,
            "ngram_vocab_size_base": 64,
            "split_ngram_parts": 1,
            "eos_token_id": VOCABULARY,  # which those layers need; never sampled
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
        },
        "Qwen2Config": window_last,
        "Qwen2MoeConfig": window_last,
        "Qwen3Config": window_last,
        "RecurrentGemmaConfig": {"block_types": ["recurrent", "attention"]},
        "ReformerConfig": {
            "attn_layers": each("local", "lsh"),
            "axial_pos_embds_dim": (16, 48),
            "axial_pos_shape": (8, 16),
        },
        "xLSTMConfig": {"hidden_size": 128, "embedding_dim": 128},  # widths are multiples of 64
        "XLMConfig": {"causal": True},  # it looks both ways otherwise
        "XmodConfig": {"default_language": "en_XX"},
        "ZambaConfig": twice_as_wide,
        "Zamba2Config": twice_as_wide,
        "ZayaConfig": {"layer_types": each("hybrid_sliding", "hybrid"), "sliding_window": 4},
    }
