// Cuts a pass into items, and merges the chunks of each row group when its last item is done.
#include "paged_attention.h"

#include <algorithm>
#include <new>

#include "paged_attention_kernels.h"
#include "scratch.h"
#include "thread_pool.h"

namespace codemill {
namespace {

constexpr int kItemsPerThread = 4;  // at least, if heads can be divided: threads then end at about the same time
constexpr int kMaxRows = 64;        // of an item with several heads: their scores stay in the second-level cache
constexpr int kPieceTokens = 64, kPieceRows = 128;  // of a head of a piece, at most: what shares a read key
constexpr int kTilePieces = 2;  // times as large are pieces for tiles, which have to bring keys and values into order
constexpr int kNarrow = 16;  // rows of a piece whose heads are read together, in the order of the addresses
constexpr int kTileTokens = 32;  // of a segment, at least, for tiles to be filled well
constexpr size_t kMaxPartials = size_t{1} << 23;  // floats

const AttentionKernels* choose_kernels(const AttentionShape& shape, int max_lanes) {
    const AttentionKernels* kernels = nullptr;
    if (max_lanes >= 16) kernels = attention_kernels_avx512(shape.head_dim, shape.cache_dtype);
    if (!kernels && max_lanes >= 8) kernels = attention_kernels_avx2(shape.head_dim, shape.cache_dtype);
    return kernels ? kernels : attention_kernels_plain(shape.head_dim, shape.cache_dtype);
}

// For long segments.
const AttentionKernels* choose_tile_kernels(const AttentionShape& shape) {
    return shape.may_use_tiles ? attention_kernels_amx(shape.head_dim, shape.cache_dtype) : nullptr;
}

class Cutter {
public:
    Cutter(const AttentionShape& shape, const AttentionKernels& kernels, int num_threads)
        : shape_(shape),
          kernels_(kernels),
          tile_kernels_(choose_tile_kernels(shape)),
          wanted_(num_threads == 1 ? 1 : static_cast<size_t>(num_threads) * kItemsPerThread) {
        for (int i = 0; i < shape.num_segments; ++i) cut_segment(i);
        for (const AttentionPiece& piece : pieces_) total_chunks_ += piece.num_chunks();
        for (const AttentionPiece& piece : pieces_) add_items(piece);
    }

    std::vector<AttentionItem> items;  // `partials` not set yet
    std::vector<size_t> offsets;       // of the items' partial results
    std::vector<int> counts;           // chunks of each row group
    size_t num_floats = 0;             // of all partial results

private:
    void cut_segment(int index) {
        const Segment& segment = shape_.segments[index];
        const int32_t* blocks = shape_.block_tables + static_cast<size_t>(index) * shape_.max_blocks;
        const bool tiled = tile_kernels_ && segment.num_new >= kTileTokens;
        const int size = tiled ? kTilePieces : 1;
        const int most = std::clamp(size * kPieceRows / shape_.group(), 1, size * kPieceTokens);
        const AttentionKernels& kernels = tiled ? *tile_kernels_ : kernels_;
        for (int first = 0; first < segment.num_new; first += most) {
            const int num_new = std::min(most, segment.num_new - first);
            pieces_.push_back({segment.start + first, num_new, segment.num_past + first, blocks, &kernels});
        }
    }

    int heads_per_item(const AttentionPiece& piece) const {
        if (piece.kernels == tile_kernels_) return 1;
        int heads = shape_.num_kv_heads;
        const auto too_few = [&] { return total_chunks_ * (shape_.num_kv_heads / heads) < wanted_; };
        while (heads > 1 && (heads * rows(piece) > kMaxRows || too_few())) heads = (heads + 1) / 2;
        return heads;
    }

    int rows(const AttentionPiece& piece) const { return piece.num_new * shape_.group(); }

    void add_items(const AttentionPiece& piece) {
        const int heads = heads_per_item(piece), chunks = piece.num_chunks();
        const size_t row_groups = (shape_.num_kv_heads + heads - 1) / heads;
        const size_t head_stride = rows(piece) * partial_stride(shape_.head_dim);
        const size_t chunk_stride = shape_.num_kv_heads * head_stride;
        const bool few = rows(piece) <= kNarrow || pieces_.size() * row_groups < wanted_;
        const bool apart = chunks > 1 && few && num_floats + chunks * chunk_stride <= kMaxPartials;
        for (int chunk = apart ? 0 : -1; chunk < (apart ? chunks : 0); ++chunk) {
            for (int head = 0; head < shape_.num_kv_heads; head += heads) {
                const int num_heads = std::min(heads, shape_.num_kv_heads - head);
                items.push_back({piece, head, num_heads, chunk, nullptr, chunk_stride, counts.size() + head / heads});
                offsets.push_back(num_floats + std::max(chunk, 0) * chunk_stride + head * head_stride);
            }
        }
        if (apart) num_floats += chunks * chunk_stride;
        counts.resize(counts.size() + row_groups, chunks);
    }

    const AttentionShape& shape_;
    const AttentionKernels& kernels_;
    const AttentionKernels* const tile_kernels_;
    const size_t wanted_;  // items
    std::vector<AttentionPiece> pieces_;
    size_t total_chunks_ = 0;
};

}  // namespace

PagedAttentionCall::PagedAttentionCall(const AttentionShape& shape, int num_threads, int max_lanes)
    : shape_(shape), kernels_(choose_kernels(shape, max_lanes)) {
    if (!kernels_) return;
    Cutter cutter(shape_, *kernels_, num_threads);
    float* const partials = partials_.floats(cutter.num_floats);
    items_ = std::move(cutter.items);
    for (size_t i = 0; i < items_.size(); ++i) items_[i].partials = partials + cutter.offsets[i];
    remaining_ = std::vector<std::atomic<int>>(cutter.counts.size());
    for (size_t i = 0; i < cutter.counts.size(); ++i) remaining_[i] = cutter.counts[i];
}

PagedAttentionCall::~PagedAttentionCall() = default;

size_t PagedAttentionCall::count() const { return items_.size(); }

void PagedAttentionCall::compute(size_t index) {
    thread_local Scratch memory;
    const AttentionItem& item = items_[index];
    const AttentionKernels& kernels = *item.piece.kernels;
    kernels.attend(shape_, layer_, item, memory.floats(kernels.scratch_floats(shape_, item)));
    if (item.chunk < 0 || --remaining_[item.merge] > 0) return;
    remaining_[item.merge] = item.piece.num_chunks();  // for the next layer
    AttentionItem first = item;
    first.partials -= item.chunk * item.chunk_stride;
    kernels.merge(shape_, layer_, first);
}

}  // namespace codemill

// Returns 0; 1 if memory ran out; 2 if there is no kernel for the shape. See AttentionShape and AttentionLayer.
extern "C" __attribute__((visibility("default"))) int codemill_paged_attention(
    const void* query, const void* key_cache, const void* value_cache, const void* key_scale, const void* value_scale,
    void* out, const void* segments, const void* block_tables, int num_segments, int max_blocks, int block_size,
    int num_heads, int num_kv_heads, int head_dim, int query_dtype, int cache_dtype, int may_use_tiles, int num_threads,
    int max_lanes) {
    using namespace codemill;
    const AttentionShape shape = {static_cast<const Segment*>(segments),
                                  static_cast<const int32_t*>(block_tables),
                                  num_segments, max_blocks, block_size, num_heads, num_kv_heads, head_dim,
                                  static_cast<Dtype>(query_dtype), static_cast<Dtype>(cache_dtype), may_use_tiles != 0};
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
