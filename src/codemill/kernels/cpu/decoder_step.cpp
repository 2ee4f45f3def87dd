// The pass as a whole and its token mixers; decoder_feed_forward.cpp has the rest of a layer.
#include "decoder_step.h"

#include <algorithm>
#include <new>

namespace codemill {

// Heads of a row in an item, which should take longer than it takes to get it; with many rows all of them.
constexpr int kHeadsPerItem = 4, kManyRows = 16;

DecoderStep::DecoderStep(const Decoder& decoder, const Pass& pass, const DecoderMemory& memory, Team& team,
                         int max_lanes)
    : decoder_(decoder),
      pass_(pass),
      memory_(memory),
      team_(team),
      products_(product_kernels(max_lanes)),
      rows_(row_kernels(max_lanes)),
      max_lanes_(max_lanes) {}

void DecoderStep::run() {
    const AttentionShape shape = {pass_.pieces,         pass_.block_tables,   pass_.num_pieces, pass_.max_blocks,
                                  pass_.block_size,     decoder_.num_heads,   decoder_.num_kv_heads,
                                  decoder_.head_dim,    Dtype::kFloat32,      static_cast<Dtype>(pass_.cache_dtype),
                                  pass_.may_use_tiles != 0};
    PagedAttentionCall attention(shape, team_.num_threads(), max_lanes_);
    embed();
    for (int i = 0; i < decoder_.num_layers; ++i) {
        const Layer& layer = decoder_.layers[i];
        if (layer.q_proj.exists()) {
            attend(layer, pass_.states[i], attention);
        } else {
            recur(layer, pass_.states[i]);
        }
        feed_forward(layer);
    }
    team_.for_each(num_rows(), [&](size_t row) {
        rows_.rms_norm(hidden(row), decoder_.norm, decoder_.eps, decoder_.hidden_size, hidden(row));
    });
}

Output DecoderStep::residual(size_t first_row) const {
    return {hidden(first_row), static_cast<size_t>(decoder_.hidden_size), true};
}

void DecoderStep::embed() {
    team_.for_each(num_rows(), [&](size_t row) { load_row(decoder_.embedding, pass_.input_ids[row], hidden(row)); });
}

void DecoderStep::multiply(const Products& products) {
    team_.for_each(products.count(), [&](size_t index) { products.compute(index); });
}

// The hidden states through a norm; for packed weights (group_size > 0) quantised too.
void DecoderStep::normalise(const float* weight, int group_size) {
    Rows& out = memory_.normed;
    out.group_size = group_size;
    team_.for_each(num_rows(), [&](size_t row) {
        rows_.rms_norm(hidden(row), weight, decoder_.eps, decoder_.hidden_size, out.values + row * out.stride);
        if (group_size) products_.quantize(out, static_cast<int>(row));
    });
}

void DecoderStep::quantize(Rows& rows, size_t num_rows, const Matrix& weight) {
    rows.num_columns = weight.num_columns;
    if (!weight.packed()) return;
    rows.group_size = weight.group_size;
    team_.for_each(num_rows, [&](size_t row) { products_.quantize(rows, static_cast<int>(row)); });
}

void DecoderStep::attend(const Layer& layer, const LayerState& state, PagedAttentionCall& attention) {
    normalise(layer.input_norm, layer.q_proj.group_size);
    const int count = pass_.num_rows;
    float* const projected = decoder_.is_gated ? memory_.projected : memory_.query;
    const auto to = [](float* values, const Matrix& weight) {
        return Output{values, static_cast<size_t>(weight.num_rows), false};
    };
    Products products;
    products.add({products_, layer.q_proj, memory_.normed, count, to(projected, layer.q_proj)});
    products.add({products_, layer.k_proj, memory_.normed, count, to(memory_.key, layer.k_proj)});
    products.add({products_, layer.v_proj, memory_.normed, count, to(memory_.value, layer.v_proj)});
    multiply(products);

    const int num_heads = decoder_.num_heads, all_heads = num_heads + decoder_.num_kv_heads;
    const int per_item = count < kManyRows ? kHeadsPerItem : all_heads;
    const int per_row = (all_heads + per_item - 1) / per_item;
    team_.for_each(num_rows() * per_row, [&](size_t index) {
        const size_t row = index / per_row;
        const int first = static_cast<int>(index % per_row) * per_item;
        for (int head = first; head < std::min(first + per_item, all_heads); ++head) {
            head < num_heads ? finish_query(layer, row, head) : finish_key(layer, state, row, head - num_heads);
        }
    });

    memory_.attended.stride = layer.o_proj.num_columns;
    attention.set_layer(
        {memory_.query, state.key, state.value, state.key_scale, state.value_scale, memory_.attended.values});
    team_.for_each(attention.count(), [&](size_t index) { attention.compute(index); });
    if (decoder_.is_gated) {
        const size_t size = decoder_.head_dim;
        team_.for_each(num_rows(), [&](size_t row) {
            for (size_t head = row * num_heads; head < (row + 1) * num_heads; ++head) {
                rows_.sigmoid_times(memory_.attended.values + head * size, projected + (2 * head + 1) * size, size);
            }
        });
    }
    project_out(layer.o_proj);
}

void DecoderStep::finish_query(const Layer& layer, size_t row, int head) {
    const size_t size = decoder_.head_dim, index = row * decoder_.num_heads + head;
    float* const query = memory_.query + index * size;
    const float* const from = decoder_.is_gated ? memory_.projected + 2 * index * size : query;
    rows_.rms_norm(from, layer.q_norm, decoder_.eps, decoder_.head_dim, query);
    const size_t turn = row * decoder_.rotary_dim;
    rows_.rotate(query, pass_.cos + turn, pass_.sin + turn, decoder_.rotary_dim);
}

void DecoderStep::finish_key(const Layer& layer, const LayerState& state, size_t row, int head) {
    const size_t size = decoder_.head_dim, index = row * decoder_.num_kv_heads + head;
    float* const key = memory_.key + index * size;
    rows_.rms_norm(key, layer.k_norm, decoder_.eps, decoder_.head_dim, key);
    const size_t turn = row * decoder_.rotary_dim;
    rows_.rotate(key, pass_.cos + turn, pass_.sin + turn, decoder_.rotary_dim);
    const size_t vector = pass_.slots[row] * decoder_.num_kv_heads + head;
    const Dtype dtype = static_cast<Dtype>(pass_.cache_dtype);
    rows_.write_kv(state.key, state.key_scale, dtype, vector, key, decoder_.head_dim);
    rows_.write_kv(state.value, state.value_scale, dtype, vector, memory_.value + index * size, decoder_.head_dim);
}

void DecoderStep::recur(const Layer& layer, const LayerState& state) {
    normalise(layer.input_norm, layer.in_proj_qkvz.group_size);
    float* const qkvz = state.qkvz ? state.qkvz : memory_.qkvz;
    float* const ba = state.ba ? state.ba : memory_.ba;
    Products products;
    products.add({products_, layer.in_proj_qkvz, memory_.normed, pass_.num_rows,
                  {qkvz, static_cast<size_t>(layer.in_proj_qkvz.num_rows), false}});
    products.add({products_, layer.in_proj_ba, memory_.normed, pass_.num_rows,
                  {ba, static_cast<size_t>(layer.in_proj_ba.num_rows), false}});
    multiply(products);
    const GatedDelta delta = {
        .qkvz = qkvz,
        .ba = ba,
        .conv_weight = layer.conv_weight,
        .A_log = layer.A_log,
        .dt_bias = layer.dt_bias,
        .norm_weight = layer.delta_norm,
        .recurrent = state.recurrent,
        .windows = state.windows,
        .out = memory_.attended.values,
        .segments = pass_.delta_segments,
        .copies = pass_.delta_copies,
        .num_segments = pass_.num_delta_segments,
        .num_key_heads = decoder_.num_key_heads,
        .num_value_heads = decoder_.num_value_heads,
        .key_dim = decoder_.key_dim,
        .value_dim = decoder_.value_dim,
        .conv_width = decoder_.conv_width,
        .weight_is_bf16 = false,
        .windows_are_bf16 = pass_.windows_are_bf16 != 0,
        .eps = decoder_.eps,
    };
    GatedDeltaCall call(delta, max_lanes_);
    team_.for_each(call.count(), [&](size_t index) { call.compute(index); });
    if (call.failed()) throw std::bad_alloc();
    project_out(layer.out_proj);
}

// Adds what the mixer's output projection makes of `attended`.
void DecoderStep::project_out(const Matrix& weight) {
    Rows& attended = memory_.attended;
    attended.stride = weight.num_columns;
    quantize(attended, num_rows(), weight);
    Products products;
    products.add({products_, weight, attended, pass_.num_rows, residual()});
    multiply(products);
}

}  // namespace codemill

// The final hidden states of a pass, see decoder.h. Returns 0, 1 if memory ran out, or 2 if no kernel takes the heads.
extern "C" __attribute__((visibility("default"))) int codemill_decoder_step(const codemill::Decoder* decoder,
                                                                            const codemill::Pass* pass,
                                                                            int num_threads, int max_lanes) {
    using namespace codemill;
    if (decoder->head_dim % 8 != 0) return 2;
    try {
        thread_local Scratch scratch;
        DecoderMemory memory;
        Arena count;
        memory.lay_out(*decoder, pass->num_rows, count);
        Arena arena(scratch.floats(count.used() / sizeof(float)));
        memory.lay_out(*decoder, pass->num_rows, arena);
        const bool done = run_team(num_threads, [&](Team& team) {
            DecoderStep(*decoder, *pass, memory, team, max_lanes).run();
        });
        return done ? 0 : 1;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
