// The entry from Python: cuts a call into items, has them computed, and merges each sequence as its last chunk is done.
#include "paged_attention.h"

#include <algorithm>
#include <atomic>
#include <new>
#include <vector>

#include "thread_pool.h"

namespace codemill {
namespace {

constexpr int kItemsPerThread = 4;  // at least, if heads can be divided: threads then end at about the same time
constexpr int kMaxRows = 64;        // of an item: their scores and sums stay in the second-level cache

const Kernels* choose_kernels(int head_dim, bool is_bf16, int max_lanes) {
    const Kernels* kernels = nullptr;
    if (max_lanes >= 16) kernels = kernels_avx512(head_dim, is_bf16);
    if (!kernels && max_lanes >= 8) kernels = kernels_avx2(head_dim, is_bf16);
    return kernels ? kernels : kernels_plain(head_dim, is_bf16);
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

class Call {
public:
    Call(const PagedAttention& call, const Kernels& kernels, int num_threads)
        : call_(call), kernels_(kernels), num_threads_(num_threads) {
        cut();
    }

    // Throws std::bad_alloc if memory ran out on any thread.
    void run() {
        auto work = [this](size_t index) {
            try {
                compute(items_[index]);
            } catch (const std::bad_alloc&) {
                failed_ = true;
            }
        };
        parallel_for(num_threads_, items_.size(), work);
        if (failed_) throw std::bad_alloc();
    }

private:
    int rows(int segment) const { return call_.segments[segment].num_new * call_.group(); }
    int num_chunks(int segment) const {
        return (call_.segments[segment].num_past + call_.segments[segment].num_new - 1) / kChunk + 1;
    }
    size_t chunk_stride(int segment) const {
        return static_cast<size_t>(call_.num_kv_heads) * rows(segment) * partial_stride(call_.head_dim);
    }

    void cut() {
        size_t total_chunks = 0, num_floats = 0;
        for (int segment = 0; segment < call_.num_segments; ++segment) {
            total_chunks += num_chunks(segment);
            num_floats += num_chunks(segment) * chunk_stride(segment);
        }
        thread_local Scratch memory;
        float* partials = memory.floats(num_floats);
        for (int segment = 0; segment < call_.num_segments; ++segment) {
            add_items(segment, heads_per_item(segment, total_chunks), partials);
            partials += num_chunks(segment) * chunk_stride(segment);
        }
        remaining_ = std::vector<std::atomic<int>>(merges_.size());
        for (size_t i = 0; i < merges_.size(); ++i) remaining_[i] = num_chunks(merges_[i].segment);
    }

    int heads_per_item(int segment, size_t total_chunks) const {
        int heads = call_.num_kv_heads;
        const size_t wanted = num_threads_ == 1 ? 1 : static_cast<size_t>(num_threads_) * kItemsPerThread;
        const auto too_few = [&] { return total_chunks * (call_.num_kv_heads / heads) < wanted; };
        while (heads > 1 && (heads * rows(segment) > kMaxRows || too_few())) heads = (heads + 1) / 2;
        return heads;
    }

    void add_items(int segment, int heads, float* partials) {
        const size_t first_merge = merges_.size();
        for (int chunk = 0; chunk < num_chunks(segment); ++chunk) {
            for (int head = 0; head < call_.num_kv_heads; head += heads) {
                const size_t row = static_cast<size_t>(head) * rows(segment);
                const int num_heads = std::min(heads, call_.num_kv_heads - head);
                float* own = partials + chunk * chunk_stride(segment) + row * partial_stride(call_.head_dim);
                items_.push_back({segment, chunk, head, num_heads, own, first_merge + head / heads});
                if (chunk == 0) merges_.push_back(items_.back());
            }
        }
    }

    void compute(const Item& item) {
        thread_local Scratch memory;
        const size_t num_rows = static_cast<size_t>(item.num_heads) * rows(item.segment);
        kernels_.attend_chunk(call_, item, memory.floats(num_rows * (call_.head_dim + kChunk)));
        if (--remaining_[item.merge] == 0) {
            kernels_.merge_chunks(call_, merges_[item.merge], chunk_stride(item.segment));
        }
    }

    const PagedAttention& call_;
    const Kernels& kernels_;
    const int num_threads_;
    std::vector<Item> items_;
    std::vector<Item> merges_;                  // the first item of each (sequence, heads)
    std::vector<std::atomic<int>> remaining_;  // chunks of each that are not done
    std::atomic<bool> failed_{false};
};

}  // namespace
}  // namespace codemill

// Returns 0; 1 if memory ran out; 2 if head_dim is no multiple of 8. See PagedAttention for the shapes. `max_lanes` is
// 16, or less to try the variants for smaller processors.
extern "C" __attribute__((visibility("default"))) int codemill_paged_attention(
    const void* query, const void* key_cache, const void* value_cache, void* out, const void* segments,
    const void* block_tables, int num_segments, int max_blocks, int block_size, int num_heads, int num_kv_heads,
    int head_dim, int is_bf16, int num_threads, int max_lanes) {
    using namespace codemill;
    const Kernels* kernels = choose_kernels(head_dim, is_bf16, max_lanes);
    if (!kernels) return 2;
    const PagedAttention call = {query,        key_cache,  value_cache, out,
                                 static_cast<const Segment*>(segments), static_cast<const int32_t*>(block_tables),
                                 num_segments, max_blocks, block_size,  num_heads,
                                 num_kv_heads, head_dim};
    try {
        Call(call, *kernels, num_threads).run();
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}
