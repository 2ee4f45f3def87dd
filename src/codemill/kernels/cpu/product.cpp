// Cuts products into items, and the entry from Python for a single one.
#include "product.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "arena.h"
#include "thread_pool.h"

namespace codemill {
namespace {

constexpr size_t kItemBytes = 1 << 16;  // of weights, with few rows: long enough a stream for the prefetcher
constexpr int kItemRows = 384;          // with many: they stay in the second-level cache

}  // namespace

const ProductKernels& product_kernels(int max_lanes) {
    const ProductKernels* kernels = nullptr;
    if (max_lanes >= kTileLanes) kernels = product_kernels_amx();
    if (!kernels && max_lanes >= 16) kernels = product_kernels_avx512();
    if (!kernels && max_lanes >= 8) kernels = product_kernels_avx2();
    if (!kernels && max_lanes > 4) kernels = product_kernels_neon();
    return kernels ? *kernels : *product_kernels_plain();
}

Product::Product(const ProductKernels& kernels, const Matrix& weight, const Rows& rows, int num_rows, Output out)
    : kernels_(kernels), weight_(weight), rows_(rows), out_(out), num_rows_(num_rows) {
    const bool few = num_rows <= kFewRows;
    const int wanted = few ? static_cast<int>(kItemBytes / (weight.block_bytes() + 1)) : kernels.panel_blocks;
    blocks_per_item_ = std::clamp(wanted, 1, std::max(weight.num_blocks(), 1));
    num_block_items_ = (weight.num_blocks() + blocks_per_item_ - 1) / blocks_per_item_;
    num_row_items_ = few ? num_rows > 0 : (num_rows + kItemRows - 1) / kItemRows;
    rows_per_item_ = few ? num_rows : (num_rows + num_row_items_ - 1) / num_row_items_;
}

void Product::compute(size_t index) const {
    // Rows by rows: threads then work with the same activations.
    const int first_block = static_cast<int>(index % num_block_items_) * blocks_per_item_;
    const int first_row = static_cast<int>(index / num_block_items_) * rows_per_item_;
    const int num_blocks = std::min(blocks_per_item_, weight_.num_blocks() - first_block);
    const int num_rows = std::min(rows_per_item_, num_rows_ - first_row);
    const Output out = {out_.values + first_row * out_.stride, out_.stride, out_.add};
    const Rows rows = rows_.from(first_row);
    if (num_rows_ <= kFewRows) return kernels_.few_rows(weight_, first_block, num_blocks, rows, num_rows, out);
    thread_local Scratch memory;
    float* const panel = memory.floats(kernels_.panel_bytes(weight_, num_blocks, num_rows) / sizeof(float));
    kernels_.many_rows(weight_, first_block, num_blocks, rows, num_rows, out, reinterpret_cast<uint8_t*>(panel));
}

void Products::add(const Product& product) {
    products_.push_back(product);
    ends_.push_back(count() + product.count());
}

void Products::compute(size_t index) const {
    const size_t i = std::upper_bound(ends_.begin(), ends_.end(), index) - ends_.begin();
    products_[i].compute(index - (i ? ends_[i - 1] : 0));
}

}  // namespace codemill

// out [M, N] = x [M, K] @ W^T, all fp32 but the weight. Returns 0, or 1 if memory ran out.
extern "C" __attribute__((visibility("default"))) int codemill_linear(const codemill::Matrix* weight, float* x,
                                                                      float* out, int num_rows, int num_threads,
                                                                      int max_lanes) {
    using namespace codemill;
    try {
        const ProductKernels& kernels = product_kernels(max_lanes);
        Rows rows = {x, static_cast<size_t>(weight->num_columns), nullptr, nullptr, nullptr, weight->num_columns,
                     std::max(weight->group_size, 1)};
        thread_local Scratch memory;
        if (weight->packed()) {
            allocate_quantized(rows, num_rows, memory);
            auto quantize = [&](size_t row) { kernels.quantize(rows, static_cast<int>(row)); };
            parallel_for(num_rows > kFewRows ? num_threads : 1, num_rows, quantize);
        }
        const Product product(kernels, *weight, rows, num_rows, {out, static_cast<size_t>(weight->num_rows), false});
        std::atomic<bool> failed{false};
        auto work = [&](size_t index) {
            try {
                product.compute(index);
            } catch (const std::bad_alloc&) {
                failed = true;
            }
        };
        parallel_for(num_threads, product.count(), work);
        return failed ? 1 : 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}
