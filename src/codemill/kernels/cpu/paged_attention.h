// Attention of the new tokens of several sequences over a paged KV cache: what a caller needs.
//
// Letters: N new tokens of all sequences, T of one, H query heads, H_kv key/value heads, G = H / H_kv, K head_dim.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "dtype.h"
#include "scratch.h"

namespace codemill {

struct AttentionKernels;
struct AttentionItem;

struct Segment {
    int32_t start;  // its first row in the query and the output
    int32_t num_new;
    int32_t num_past;
};

// What is the same in every layer of a pass. Queries and outputs are fp32 or bf16, the cache is fp32, bf16 or int8.
struct AttentionShape {
    const Segment* segments;
    const int32_t* block_tables;  // [segments, max_blocks]
    int num_segments, max_blocks, block_size, num_heads, num_kv_heads, head_dim;
    Dtype query_dtype, cache_dtype;
    // Lets AMX compute segments of 32 new tokens and more, where there is AMX and the cache is bf16 or int8: two to three
    // times as fast, but the last bits of a token then depend on how the prompt is cut.
    bool may_use_tiles = false;

    int group() const { return num_heads / num_kv_heads; }
};

// What differs from layer to layer. A number of an int8 cache is its integer times the scale of its slot and head.
struct AttentionLayer {
    const void* query;         // [N, H, K]
    const void* key_cache;     // [slots, H_kv, K]
    const void* value_cache;   // [slots, H_kv, K]
    const float* key_scale;    // [slots, H_kv], of an int8 cache
    const float* value_scale;  // [slots, H_kv], of an int8 cache
    void* out;                 // [N, H, K]
};

// The attention of one pass, cut into items that any threads may compute in any order; the bits of the result depend
// on neither, nor on what else is in the call. It serves one layer after the other:
//
//     PagedAttentionCall call(shape, num_threads);     // shape.segments and block_tables must outlive it
//     for each layer:
//         call.set_layer(layer);                       // by one thread, while no item is computed
//         call.compute(i) for every i < call.count();  // all done before the next set_layer
class PagedAttentionCall {
public:
    // `max_lanes` is 16, or less to try the variants for smaller processors. Throws std::bad_alloc.
    explicit PagedAttentionCall(const AttentionShape& shape, int num_threads, int max_lanes = 16);
    ~PagedAttentionCall();
    PagedAttentionCall(const PagedAttentionCall&) = delete;
    PagedAttentionCall& operator=(const PagedAttentionCall&) = delete;

    // Whether there is a kernel for the shape: K a multiple of 8. Nothing below may be called otherwise.
    bool is_supported() const { return kernels_ != nullptr; }
    void set_layer(const AttentionLayer& layer) { layer_ = layer; }
    size_t count() const;
    // Throws std::bad_alloc.
    void compute(size_t index);

private:
    const AttentionShape shape_;
    const AttentionKernels* const kernels_;
    AttentionLayer layer_ = {};
    std::vector<AttentionItem> items_;
    Scratch partials_;                        // of the items that share rows
    std::vector<std::atomic<int>> remaining_;  // items of each row group that are not done
};

}  // namespace codemill
