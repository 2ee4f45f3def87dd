// One pass over the decoder by a team of threads: the leader's code, phase after phase.
#pragma once

#include "decoder_memory.h"
#include "product.h"
#include "row_kernels.h"
#include "team.h"

namespace codemill {

class DecoderStep {
public:
    DecoderStep(const Decoder& decoder, const Pass& pass, const DecoderMemory& memory, Team& team, int max_lanes);
    // Throws std::bad_alloc.
    void run();

private:
    size_t num_rows() const { return pass_.num_rows; }
    float* hidden(size_t row) const { return pass_.hidden + row * decoder_.hidden_size; }
    Output residual(size_t first_row = 0) const;

    void embed();
    void normalise(const float* weight, int group_size);
    void attend(const Layer& layer, const LayerState& state, PagedAttentionCall& attention);
    void finish_query(const Layer& layer, size_t row, int head);
    void finish_key(const Layer& layer, const LayerState& state, size_t row, int head);
    void recur(const Layer& layer, const LayerState& state);
    void project_out(const Matrix& weight);

    void feed_forward(const Layer& layer);
    void dense(const Layer& layer, size_t first, size_t count);
    void experts(const Layer& layer, size_t first, size_t count);
    void route(const Layer& layer, size_t first, size_t count);
    void choose(size_t row);
    void order(size_t count);
    void request_experts(const Matrix& weights);
    void gather(size_t first, size_t route, bool packed);
    void multiply_experts(const Matrix& weights, const Rows& rows, float* out);

    void multiply(const Products& products);
    void quantize(Rows& rows, size_t num_rows, const Matrix& weight);

    const Decoder& decoder_;
    const Pass& pass_;
    DecoderMemory memory_;
    Team& team_;
    const ProductKernels& products_;
    const RowKernels& rows_;
    const int max_lanes_;
};

}  // namespace codemill
