// The feed-forward of a layer: dense, or a mixture of experts with or without a shared one.
#include <algorithm>
#include <cstring>

#include "decoder_step.h"
#include "mapped_pages.h"

namespace codemill {

void DecoderStep::feed_forward(const Layer& layer) {
    normalise(layer.post_norm, std::max(layer.gate_proj.group_size, layer.expert_gate_up.group_size));
    for (size_t first = 0; first < num_rows(); first += kFeedForwardRows) {
        const size_t count = std::min<size_t>(kFeedForwardRows, num_rows() - first);
        if (layer.router.exists()) experts(layer, first, count);
        if (layer.gate_proj.exists()) dense(layer, first, count);
    }
}

// down(silu(gate(x)) * up(x)), added to the hidden states; scaled by its gate where it is a shared expert.
void DecoderStep::dense(const Layer& layer, size_t first, size_t count) {
    const int n = static_cast<int>(count);
    const size_t size = layer.gate_proj.num_rows;
    const Rows normed = memory_.normed.from(first);
    const bool is_shared = layer.shared_gate.exists();
    Products products;
    products.add({products_, layer.gate_proj, normed, n, {memory_.gate, size, false}});
    products.add({products_, layer.up_proj, normed, n, {memory_.up, size, false}});
    if (is_shared) products.add({products_, layer.shared_gate, normed, n, {memory_.shared_gate, 1, false}});
    multiply(products);

    Rows& activated = memory_.activated;
    activated.stride = size;
    activated.num_columns = layer.down_proj.num_columns;
    activated.group_size = layer.down_proj.group_size;
    team_.for_each(count, [&](size_t row) {
        rows_.silu_times(memory_.gate + row * size, memory_.up + row * size, static_cast<int>(size));
        if (activated.group_size) products_.quantize(activated, static_cast<int>(row));
    });

    const size_t width = decoder_.hidden_size;
    Products down;
    down.add({products_, layer.down_proj, activated, n,
              is_shared ? Output{memory_.shared_out, width, false} : residual(first)});
    multiply(down);
    if (!is_shared) return;
    team_.for_each(count, [&](size_t row) {
        float scale = 1.0f;
        rows_.sigmoid_times(&scale, memory_.shared_gate + row, 1);
        rows_.add_scaled(hidden(first + row), scale, memory_.shared_out + row * width, decoder_.hidden_size);
    });
}

void DecoderStep::experts(const Layer& layer, size_t first, size_t count) {
    route(layer, first, count);
    if (decoder_.experts_on_disk) {
        request_experts(layer.expert_gate_up);
        request_experts(layer.expert_down);
    }
    const size_t num_routes = count * decoder_.top_k;
    memory_.gathered.group_size = memory_.normed.group_size;
    const bool packed = layer.expert_gate_up.packed();
    team_.for_each(num_routes, [&](size_t index) { gather(first, index, packed); });

    multiply_experts(layer.expert_gate_up, memory_.gathered, memory_.gate_up);
    Rows& activated = memory_.expert_activated;
    const int size = layer.expert_down.num_columns;
    activated.num_columns = size;
    activated.stride = 2 * static_cast<size_t>(size);
    activated.group_size = layer.expert_down.group_size;
    team_.for_each(num_routes, [&](size_t place) {
        float* const gate = memory_.gate_up + place * activated.stride;
        rows_.silu_times(gate, gate + size, size);
        if (activated.group_size) products_.quantize(activated, static_cast<int>(place));
    });

    multiply_experts(layer.expert_down, activated, memory_.expert_out);
    team_.for_each(count, [&](size_t row) {
        for (size_t index = row * decoder_.top_k; index < (row + 1) * decoder_.top_k; ++index) {
            const float* const out = memory_.expert_out + static_cast<size_t>(memory_.place[index]) * decoder_.hidden_size;
            rows_.add_scaled(hidden(first + row), memory_.route_weight[index], out, decoder_.hidden_size);
        }
    });
}

void DecoderStep::route(const Layer& layer, size_t first, size_t count) {
    Products products;
    products.add({products_, layer.router, memory_.normed.from(first), static_cast<int>(count),
                  {memory_.router, static_cast<size_t>(decoder_.num_experts), false}});
    multiply(products);
    team_.for_each(count, [&](size_t row) { choose(row); });
    order(count);
}

// The likeliest experts of a row by softmax over all, the likeliest first, and their weights.
void DecoderStep::choose(size_t row) {
    const int num_experts = decoder_.num_experts, top_k = decoder_.top_k;
    float* const scores = memory_.router + row * num_experts;
    int32_t* const chosen = memory_.expert + row * top_k;
    float* const weights = memory_.route_weight + row * top_k;
    const float sum = rows_.exponentials(scores, num_experts);
    float total = 0;
    for (int rank = 0; rank < top_k; ++rank) {
        int best = -1;
        for (int i = 0; i < num_experts; ++i) {
            const bool is_better = best < 0 || scores[i] > scores[best];
            if (is_better && std::find(chosen, chosen + rank, i) == chosen + rank) best = i;
        }
        chosen[rank] = best;
        weights[rank] = scores[best] / sum;
        total += weights[rank];
    }
    if (!decoder_.normalise_top_k) return;
    for (int rank = 0; rank < top_k; ++rank) weights[rank] /= total;
}

// Sorts the routes of `count` rows by expert, so that an expert's weights are read once.
void DecoderStep::order(size_t count) {
    int32_t* const start = memory_.expert_start;
    const size_t num_routes = count * decoder_.top_k;
    std::fill_n(start, decoder_.num_experts + 1, 0);
    for (size_t i = 0; i < num_routes; ++i) ++start[memory_.expert[i] + 1];
    for (int i = 0; i < decoder_.num_experts; ++i) start[i + 1] += start[i];
    for (size_t i = 0; i < num_routes; ++i) memory_.place[i] = start[memory_.expert[i]]++;
    // Every start is now where the next expert begins.
    for (int i = decoder_.num_experts; i > 0; --i) start[i] = start[i - 1];
    start[0] = 0;
}

// Has the disk know of all touched experts before the first is waited for: one page after the other takes far longer.
void DecoderStep::request_experts(const Matrix& weights) {
    for (int expert = 0; expert < decoder_.num_experts; ++expert) {
        if (memory_.expert_start[expert] != memory_.expert_start[expert + 1]) request_pages(weights.nth(expert));
    }
}

// Copies the activations of a route to its place.
void DecoderStep::gather(size_t first, size_t route, bool packed) {
    const Rows from = memory_.normed.from(first + route / decoder_.top_k);
    const Rows to = memory_.gathered.from(memory_.place[route]);
    if (!packed) {
        std::memcpy(to.values, from.values, from.num_columns * sizeof(float));
        return;
    }
    std::memcpy(to.quantized, from.quantized, from.padded());
    std::memcpy(to.scale, from.scale, from.num_groups() * sizeof(float));
    std::memcpy(to.sum, from.sum, from.num_groups() * sizeof(int32_t));
}

// Each touched expert with the rows at its places.
void DecoderStep::multiply_experts(const Matrix& weights, const Rows& rows, float* out) {
    const size_t width = weights.num_rows;
    Products products;
    for (int expert = 0; expert < decoder_.num_experts; ++expert) {
        const int32_t start = memory_.expert_start[expert], stop = memory_.expert_start[expert + 1];
        if (start == stop) continue;
        products.add({products_, weights.nth(expert), rows.from(start), stop - start, {out + start * width, width, false}});
    }
    multiply(products);
}

}  // namespace codemill
