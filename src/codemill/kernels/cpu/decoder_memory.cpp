#include "decoder_memory.h"

#include <algorithm>

namespace codemill {
namespace {

// The largest of a size over all layers.
template <class Size>
size_t largest(const Decoder& decoder, Size size) {
    size_t most = 0;
    for (int i = 0; i < decoder.num_layers; ++i) most = std::max(most, static_cast<size_t>(size(decoder.layers[i])));
    return most;
}

Rows take_rows(size_t num_rows, size_t num_columns, bool with_values, Arena& arena) {
    Rows rows = {};
    rows.num_columns = static_cast<int32_t>(num_columns);
    rows.stride = num_columns;
    if (with_values) rows.values = arena.take<float>(num_rows * num_columns);
    take_quantized(rows, num_rows, arena);
    return rows;
}

}  // namespace

void DecoderMemory::lay_out(const Decoder& decoder, size_t num_rows, Arena& arena) {
    normed = take_rows(num_rows, decoder.hidden_size, true, arena);
    lay_out_mixers(decoder, num_rows, arena);
    lay_out_feed_forward(decoder, std::min<size_t>(num_rows, kFeedForwardRows), arena);
    if (decoder.num_experts) lay_out_experts(decoder, std::min<size_t>(num_rows, kFeedForwardRows), arena);
}

void DecoderMemory::lay_out_mixers(const Decoder& decoder, size_t num_rows, Arena& arena) {
    const size_t heads = static_cast<size_t>(decoder.num_heads) * decoder.head_dim;
    const size_t kv_heads = static_cast<size_t>(decoder.num_kv_heads) * decoder.head_dim;
    const size_t values = static_cast<size_t>(decoder.num_value_heads) * decoder.value_dim;
    attended = take_rows(num_rows, std::max(heads, values), true, arena);
    projected = arena.take<float>(decoder.is_gated ? num_rows * 2 * heads : 0);
    query = arena.take<float>(num_rows * heads);
    key = arena.take<float>(num_rows * kv_heads);
    value = arena.take<float>(num_rows * kv_heads);
    qkvz = arena.take<float>(num_rows * largest(decoder, [](const Layer& x) { return x.in_proj_qkvz.num_rows; }));
    ba = arena.take<float>(num_rows * largest(decoder, [](const Layer& x) { return x.in_proj_ba.num_rows; }));
}

void DecoderMemory::lay_out_feed_forward(const Decoder& decoder, size_t num_rows, Arena& arena) {
    const size_t size = largest(decoder, [](const Layer& layer) { return layer.gate_proj.num_rows; });
    gate = arena.take<float>(num_rows * size);
    up = arena.take<float>(num_rows * size);
    activated = take_rows(num_rows, size, false, arena);
    activated.values = gate;
    shared_gate = arena.take<float>(num_rows);
    shared_out = arena.take<float>(decoder.num_experts ? num_rows * decoder.hidden_size : 0);
}

void DecoderMemory::lay_out_experts(const Decoder& decoder, size_t num_rows, Arena& arena) {
    const size_t num_routes = num_rows * decoder.top_k;
    const size_t size = largest(decoder, [](const Layer& layer) { return layer.expert_down.num_columns; });
    router = arena.take<float>(num_rows * decoder.num_experts);
    expert = arena.take<int32_t>(num_routes);
    route_weight = arena.take<float>(num_routes);
    place = arena.take<int32_t>(num_routes);
    expert_start = arena.take<int32_t>(decoder.num_experts + 1);
    gathered = take_rows(num_routes, decoder.hidden_size, true, arena);
    gate_up = arena.take<float>(num_routes * 2 * size);
    expert_activated = take_rows(num_routes, size, false, arena);
    expert_activated.values = gate_up;
    expert_activated.stride = 2 * size;
    expert_out = arena.take<float>(num_routes * decoder.hidden_size);
}

}  // namespace codemill
