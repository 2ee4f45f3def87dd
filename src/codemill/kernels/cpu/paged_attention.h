// Attention of a few new tokens of several sequences over a paged KV cache: what the driver and the variants share.
//
// Letters: T new tokens of a sequence, H query heads, H_kv key/value heads, G = H / H_kv, K head_dim.
#pragma once

#include <cstddef>
#include <cstdint>

namespace codemill {

// Keys are attended in chunks of so many positions, counted from position 0, whatever else is computed: the order of
// every sum, and so every bit of the result, depends on the token's position alone.
constexpr int kChunk = 256;

struct Segment {
    int32_t start;  // its first row in the query and the output
    int32_t num_new;
    int32_t num_past;
};

struct PagedAttention {
    const void* query;        // [N, H, K]
    const void* key_cache;    // [slots, H_kv, K]
    const void* value_cache;  // [slots, H_kv, K]
    void* out;                // [N, H, K]
    const Segment* segments;
    const int32_t* block_tables;  // [segments, max_blocks]
    int num_segments, max_blocks, block_size, num_heads, num_kv_heads, head_dim;

    int group() const { return num_heads / num_kv_heads; }
};

// A piece of the work: some key/value heads of one chunk of one sequence. A head has T * G rows, of token t and query
// head g of the group at t * G + g; each yields a partial result: the sum of weights times values [K], then the
// maximum of its scores and the sum of its weights.
struct Item {
    int segment;
    int chunk;
    int first_head;
    int num_heads;
    float* partials;  // of the first head's first row in this chunk
    size_t merge;     // which (sequence, heads) it belongs to
};

// Floats from one row's partial result to the next.
inline size_t partial_stride(int head_dim) { return (static_cast<size_t>(head_dim) + 2 + 15) / 16 * 16; }

struct Kernels {
    // Writes the partial results of the item's rows; scratch has num_heads * T * G * (K + kChunk) floats.
    void (*attend_chunk)(const PagedAttention&, const Item&, float* scratch);
    // Writes the output of the heads from the partial results of all chunks, which lie `chunk_stride` floats apart.
    void (*merge_chunks)(const PagedAttention&, const Item& first, size_t chunk_stride);
};

// The variants, each compiled for other instructions. Null where this build or this processor lacks those, or where
// head_dim is no multiple of 32 (AVX-512), 16 (AVX2) or 8.
const Kernels* kernels_plain(int head_dim, bool is_bf16);
const Kernels* kernels_avx2(int head_dim, bool is_bf16);
const Kernels* kernels_avx512(int head_dim, bool is_bf16);

}  // namespace codemill
