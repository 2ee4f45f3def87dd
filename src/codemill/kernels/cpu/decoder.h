// The decoder and a pass over it, as Python describes them (models/fused_structs.py has the same fields).
//
// Letters: N rows of a pass, D model, H query heads, H_kv key/value heads, K head_dim, R rotated dims, F ffn, E experts.
#pragma once

#include <cstdint>

#include "gated_delta.h"
#include "matrix.h"
#include "paged_attention.h"

namespace codemill {

// Norm weights are fp32, and have the 1 of zero-centred ones added. A matrix that a layer lacks is all zeros.
struct Layer {
    const float* input_norm;  // [D]
    const float* post_norm;   // [D]
    // Full attention. With an output gate q_proj yields [q | gate] per head.
    Matrix q_proj, k_proj, v_proj, o_proj;
    const float* q_norm;  // [K]
    const float* k_norm;  // [K]
    // Gated DeltaNet, see gated_delta.h.
    Matrix in_proj_qkvz, in_proj_ba, out_proj;
    const float* conv_weight;
    const float* A_log;
    const float* dt_bias;
    const float* delta_norm;
    // Feed-forward; beside experts it is the shared one.
    Matrix gate_proj, up_proj, down_proj, shared_gate;
    // Mixture of experts: the first expert; the others follow.
    Matrix router, expert_gate_up, expert_down;
};

struct Decoder {
    Matrix embedding;
    const Layer* layers;
    const float* norm;  // [D]
    int32_t num_layers, hidden_size, num_heads, num_kv_heads, head_dim, rotary_dim, is_gated;
    int32_t num_experts, top_k, normalise_top_k, experts_on_disk;
    int32_t num_key_heads, num_value_heads, key_dim, value_dim, conv_width;  // of Gated DeltaNet
    float eps;
};

// What one layer remembers: keys and values, or recurrent states and conv windows.
struct LayerState {
    void* key;
    void* value;
    float* key_scale;
    float* value_scale;
    float* recurrent;
    void* windows;
    float* qkvz;  // where the projections of the pass are to be kept, or null
    float* ba;
};

// The attention of some of the pass: see AttentionShape.
struct Pass {
    const int64_t* input_ids;  // [N]
    const float* cos;          // [N, R]
    const float* sin;          // [N, R]
    const int64_t* slots;      // [N], of the KV cache
    const Segment* pieces;
    const int32_t* block_tables;
    const DeltaSegment* delta_segments;
    const DeltaCopy* delta_copies;
    const LayerState* states;  // of each layer
    float* hidden;             // [N, D], the result: final hidden states
    int32_t num_rows, num_pieces, max_blocks, block_size, num_delta_segments;
    int32_t cache_dtype, windows_are_bf16;
    int32_t may_use_tiles;  // for attention
};

}  // namespace codemill
