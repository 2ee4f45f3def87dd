// The intermediate results of a pass, all of them in one piece of memory.
#pragma once

#include "arena.h"
#include "decoder.h"

namespace codemill {

// Of a feed-forward at a time, so that its wide rows stay small; with experts each row counts top_k times.
constexpr int kFeedForwardRows = 256;

struct DecoderMemory {
    Rows normed;    // [N, D]
    Rows attended;  // [N, H * K] or [N, H_v * V]: before the output projection
    float *projected, *query, *key, *value;  // [N, H, 2 K] if gated, [N, H, K], [N, H_kv, K] twice
    float *qkvz, *ba;                        // of Gated DeltaNet
    float *gate, *up;                        // [rows, F]
    Rows activated;                          // [rows, F]: silu(gate) * up, in the place of gate
    float* shared_gate;                      // [rows]
    float* shared_out;                       // [rows, D]
    // Experts. A route is one row's way through one of its top_k experts; they are ordered by row and rank, and again,
    // as their `place` says, by expert.
    float* router;          // [rows, E]
    int32_t* expert;        // [routes]
    float* route_weight;    // [routes]
    int32_t* place;         // [routes]
    int32_t* expert_start;  // [E + 1]: the first place of each expert
    Rows gathered;          // [places, D]
    float* gate_up;         // [places, 2 F]
    Rows expert_activated;  // [places, F], in the place of gate
    float* expert_out;      // [places, D]

    // An `arena` without memory counts the bytes.
    void lay_out(const Decoder& decoder, size_t num_rows, Arena& arena);

private:
    void lay_out_mixers(const Decoder& decoder, size_t num_rows, Arena& arena);
    void lay_out_feed_forward(const Decoder& decoder, size_t num_rows, Arena& arena);
    void lay_out_experts(const Decoder& decoder, size_t num_rows, Arena& arena);
};

}  // namespace codemill
