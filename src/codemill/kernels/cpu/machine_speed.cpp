// The entry points: both loops on several threads at once. The caller takes the time.
#include "machine_speed.h"

#include <array>
#include <atomic>

#include "thread_pool.h"

namespace codemill {
namespace {

constexpr size_t kPiece = size_t{1} << 20;  // what a thread reads before it takes the next
constexpr size_t kItems = 4;                // per thread, so that a late one costs little

using Variants = std::array<const MachineSpeedKernels*, 4>;

const Variants& variants() {
    static const Variants all = {machine_speed_avx512(), machine_speed_avx2(), machine_speed_neon(), machine_speed_plain()};
    return all;
}

const MachineSpeedKernels& best_variant() {
    const MachineSpeedKernels* const* kernels = variants().data();
    while (*kernels == nullptr) ++kernels;
    return **kernels;
}

ComputeLoop best_loop(Operation operation) {
    for (const MachineSpeedKernels* const kernels : variants()) {
        if (kernels == nullptr) continue;
        if (const ComputeLoop loop = kernels->loop(operation); loop.run != nullptr) return loop;
    }
    return {};
}

}  // namespace
}  // namespace codemill

// Reads a buffer once -> the sum of its 32-bit words. num_bytes is a multiple of 512.
extern "C" __attribute__((visibility("default"))) int codemill_read_memory(const void* buffer, size_t num_bytes,
                                                                           uint32_t* sum, int num_threads) {
    using namespace codemill;
    if (num_bytes % kReadBlock != 0) return 2;
    const auto read = best_variant().read;
    std::atomic<uint32_t> total{0};
    auto piece = [&](size_t index) {
        const size_t start = index * kPiece, rest = num_bytes - start;
        total += read(static_cast<const char*>(buffer) + start, rest < kPiece ? rest : kPiece);
    };
    parallel_for(num_threads, (num_bytes + kPiece - 1) / kPiece, piece);
    *sum = total;
    return 0;
}

// Computes without touching memory -> how many operations that were, a multiplication and an addition being two; 0 if
// this processor has no such instruction.
extern "C" __attribute__((visibility("default"))) int codemill_compute(int operation, size_t rounds,
                                                                       size_t* num_operations, int num_threads) {
    using namespace codemill;
    const ComputeLoop loop = best_loop(static_cast<Operation>(operation));
    const size_t num_items = kItems * num_threads;
    *num_operations = loop.operations_per_round * rounds * num_items;
    if (loop.run == nullptr) return 0;
    std::atomic<uint32_t> done{0};
    auto item = [&](size_t) { done += loop.run(rounds) >= 0; };
    parallel_for(num_threads, num_items, item);
    return done == num_items ? 0 : 2;
}
