// Cuts a pass into items, and merges the chunks of each row group when its last item is done.
#include "paged_attention.h"

#include <algorithm>
#include <new>

#include "paged_attention_kernels.h"
#include "thread_pool.h"

namespace codemill {
namespace {

constexpr int kItemsPerThread = 4;  // at least, if heads can be divided: threads then end at about the same time
constexpr int kMaxRows = 64;        // of an item: their scores and sums stay in the second-level cache
constexpr int kPiece = 16;          // new tokens
constexpr int kNarrow = 16;         // rows of a piece whose heads are read together, in the order of the addresses
constexpr size_t kMaxPartials = size_t{1} << 23;  // floats

const AttentionKernels* choose_kernels(const AttentionShape& shape, int max_lanes) {
    const AttentionKernels* kernels = nullptr;
    if (max_lanes >= 16) kernels = attention_kernels_avx512(shape.head_dim, shape.cache_dtype);
    if (!kernels && max_lanes >= 8) kernels = attention_kernels_avx2(shape.head_dim, shape.cache_dtype);
    return kernels ? kernels : attention_kernels_plain(shape.head_dim, shape.cache_dtype);
}

std::vector<AttentionPiece> cut_pieces(const AttentionShape& shape) {
    std::vector<AttentionPiece> pieces;
    for (int i = 0; i < shape.num_segments; ++i) {
        const Segment& segment = shape.segments[i];
        const int32_t* blocks = shape.block_tables + static_cast<size_t>(i) * shape.max_blocks;
        for (int first = 0; first < segment.num_new; first += kPiece) {
            const int num_new = std::min(kPiece, segment.num_new - first);
            pieces.push_back({segment.start + first, num_new, segment.num_past + first, blocks});
        }
    }
    return pieces;
}

// Memory that grows and is kept for the next call, in cache lines of its own.
class Scratch {
public:
    float* floats(size_t wanted) {
        if (lines_.size() * 16 < wanted) lines_ = std::vector<Line>((wanted + 15) / 16);
        return reinterpret_cast<float*>(lines_.data());
    }

private:
    struct alignas(64) Line {
        float floats[16];
    };
    std::vector<Line> lines_;
};

}  // namespace

PagedAttentionCall::PagedAttentionCall(const AttentionShape& shape, int num_threads, int max_lanes)
    : shape_(shape), kernels_(choose_kernels(shape, max_lanes)) {
    if (kernels_) cut(num_threads);
}

PagedAttentionCall::~PagedAttentionCall() = default;

size_t PagedAttentionCall::count() const { return items_.size(); }

void PagedAttentionCall::cut(int num_threads) {
    const std::vector<AttentionPiece> pieces = cut_pieces(shape_);
    const size_t wanted = num_threads == 1 ? 1 : static_cast<size_t>(num_threads) * kItemsPerThread;
    size_t total_chunks = 0;
    for (const AttentionPiece& piece : pieces) total_chunks += piece.num_chunks();
    std::vector<int> counts;       // chunks of each row group
    std::vector<size_t> offsets;  // of the items' partial results
    size_t num_floats = 0;
    for (const AttentionPiece& piece : pieces) {
        const int rows = piece.num_new * shape_.group(), chunks = piece.num_chunks();
        int heads = shape_.num_kv_heads;
        const auto too_few = [&] { return total_chunks * (shape_.num_kv_heads / heads) < wanted; };
        while (heads > 1 && (heads * rows > kMaxRows || too_few())) heads = (heads + 1) / 2;
        const size_t chunk_stride = static_cast<size_t>(shape_.num_kv_heads) * rows * partial_stride(shape_.head_dim);
        const bool few = pieces.size() * (shape_.num_kv_heads / heads) < wanted;
        const bool apart = chunks > 1 && (rows <= kNarrow || few) && num_floats + chunks * chunk_stride <= kMaxPartials;
        for (int chunk = apart ? 0 : -1; chunk < (apart ? chunks : 0); ++chunk) {
            for (int head = 0; head < shape_.num_kv_heads; head += heads) {
                const size_t row = static_cast<size_t>(head) * rows;
                const size_t index = counts.size() + head / heads;
                const int num_heads = std::min(heads, shape_.num_kv_heads - head);
                items_.push_back({piece, head, num_heads, chunk, nullptr, chunk_stride, index});
                offsets.push_back(num_floats + std::max(chunk, 0) * chunk_stride + row * partial_stride(shape_.head_dim));
            }
        }
        if (apart) num_floats += chunks * chunk_stride;
        counts.resize(counts.size() + (shape_.num_kv_heads + heads - 1) / heads, chunks);
    }
    partials_ = std::vector<float>(num_floats);
    for (size_t i = 0; i < items_.size(); ++i) items_[i].partials = partials_.data() + offsets[i];
    remaining_ = std::vector<std::atomic<int>>(counts.size());
    for (size_t i = 0; i < counts.size(); ++i) remaining_[i] = counts[i];
}

void PagedAttentionCall::compute(size_t index) {
    thread_local Scratch memory;
    const AttentionItem& item = items_[index];
    const size_t num_rows = static_cast<size_t>(item.num_heads) * item.piece.num_new * shape_.group();
    kernels_->attend(shape_, layer_, item, memory.floats(scratch_floats(num_rows, shape_.head_dim)));
    if (item.chunk < 0 || --remaining_[item.merge] > 0) return;
    remaining_[item.merge] = item.piece.num_chunks();  // for the next layer
    AttentionItem first = item;
    first.partials -= item.chunk * item.chunk_stride;
    kernels_->merge(shape_, layer_, first);
}

}  // namespace codemill

// Returns 0; 1 if memory ran out; 2 if there is no kernel for the shape. See AttentionShape and AttentionLayer.
extern "C" __attribute__((visibility("default"))) int codemill_paged_attention(
    const void* query, const void* key_cache, const void* value_cache, const void* key_scale, const void* value_scale,
    void* out, const void* segments, const void* block_tables, int num_segments, int max_blocks, int block_size,
    int num_heads, int num_kv_heads, int head_dim, int query_dtype, int cache_dtype, int num_threads, int max_lanes) {
    using namespace codemill;
    const AttentionShape shape = {static_cast<const Segment*>(segments),
                                  static_cast<const int32_t*>(block_tables),
                                  num_segments, max_blocks, block_size, num_heads, num_kv_heads, head_dim,
                                  static_cast<Dtype>(query_dtype), static_cast<Dtype>(cache_dtype)};
    std::atomic<bool> failed{false};
    try {
        PagedAttentionCall call(shape, num_threads, max_lanes);
        if (!call.is_supported()) return 2;
        call.set_layer({query, key_cache, value_cache, static_cast<const float*>(key_scale),
                        static_cast<const float*>(value_scale), out});
        auto work = [&](size_t index) {
            try {
                call.compute(index);
            } catch (const std::bad_alloc&) {
                failed = true;
            }
        };
        parallel_for(num_threads, call.count(), work);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return failed ? 1 : 0;
}
