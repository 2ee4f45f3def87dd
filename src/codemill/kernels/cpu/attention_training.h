// Backward of causal attention over packed documents. See kernels/attention_training.py.
//
// Letters: N tokens of all documents, H query heads, G key/value heads, K head_dim.
#pragma once

#include <cstddef>
#include <cstdint>

namespace codemill {

// Numbers are bf16 where it does not say otherwise. K is a multiple of 32.
struct AttentionPass {
    const uint16_t *query, *out, *out_gradient;  // [N, H, K]
    const uint16_t *key, *value;                 // [N, G, K]
    const float* log_sums;                       // fp32 [N, H]: log of the sum of exp(scores)
    uint16_t* query_gradient;                    // [N, H, K]
    uint16_t *key_gradient, *value_gradient;     // [N, G, K]
    const int64_t* starts;                       // [num_documents + 1]: where each begins
    int32_t num_documents, num_heads, num_kv_heads, head_dim;
    float scale;
};

struct AttentionBackward {
    size_t (*scratch_floats)(const AttentionPass& pass, int document);
    // The gradients of one key/value head of a document, and of the query heads that share it.
    void (*backward)(const AttentionPass& pass, int document, int kv_head, float* scratch);
};

// Null where the processor has no AMX.
const AttentionBackward* attention_backward_amx();

}  // namespace codemill
