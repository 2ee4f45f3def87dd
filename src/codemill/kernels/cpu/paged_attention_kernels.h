// What the cutting into items and the variants share.
#pragma once

#include "paged_attention.h"

namespace codemill {

// Keys are attended in chunks of so many positions, counted from position 0, whatever else is computed, and chunks are
// merged in order: every bit of the result depends on the token's position alone.
constexpr int kChunk = 256;

inline int num_chunks(int num_positions) { return (num_positions + kChunk - 1) / kChunk; }

// New tokens of one segment that share what is read.
struct AttentionPiece {
    int start;  // its first row in the query and the output
    int num_new;
    int num_past;
    const int32_t* blocks;
    const AttentionKernels* kernels;

    int num_chunks() const { return codemill::num_chunks(num_past + num_new); }
};

// Some key/value heads of a piece, over all its chunks or one of them. A head has T * G rows, of token t and query head
// g of the group at t * G + g. A row's partial result over some chunks: the sum of weights times values [K], then the
// maximum of its scores and the sum of its weights.
struct AttentionItem {
    AttentionPiece piece;
    int first_head;
    int num_heads;
    int chunk;        // -1: all chunks, and the item writes the output itself
    float* partials;  // of the first head's first row in this chunk; those of the chunks are `chunk_stride` floats apart
    size_t chunk_stride;
    size_t merge;  // which row group's chunks are counted
};

// Floats from one row's partial result to the next.
inline size_t partial_stride(int head_dim) { return (static_cast<size_t>(head_dim) + 2 + 15) / 16 * 16; }

// Positions that are taken head by head, at most.
constexpr int kMaxTile = 32;

// Floats from the scores of one row to those of the next: no power of two, which would crowd them into few sets of the
// first-level cache.
constexpr int kScoreStride = kChunk + 16;

struct AttentionKernels {
    // Of the memory that an item takes while it is computed.
    size_t (*scratch_floats)(const AttentionShape&, const AttentionItem&);
    // Writes the output of an item that has all chunks, else its partial results.
    void (*attend)(const AttentionShape&, const AttentionLayer&, const AttentionItem&, float* scratch);
    // Writes the output of the item's rows from the partial results of all chunks; the item is of chunk 0.
    void (*merge)(const AttentionShape&, const AttentionLayer&, const AttentionItem&);
};

// The variants, each compiled for other instructions. Null where this build or this processor lacks those, or where
// head_dim is no multiple of 32 (AMX, AVX-512), 16 (AVX2) or 8. AMX is for one head at a time, of a bf16 or int8 cache.
const AttentionKernels* attention_kernels_plain(int head_dim, Dtype cache);
const AttentionKernels* attention_kernels_avx2(int head_dim, Dtype cache);
const AttentionKernels* attention_kernels_avx512(int head_dim, Dtype cache);
const AttentionKernels* attention_kernels_amx(int head_dim, Dtype cache);

}  // namespace codemill
