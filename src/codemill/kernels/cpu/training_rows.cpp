// Shares rows among threads, in parts that do not depend on how many there are.
#include "training_rows.h"

#include <algorithm>

#include "scratch.h"
#include "training_threads.h"

namespace {

using codemill::NormPass;
using codemill::SwigluPass;
using codemill::TrainingRows;

// The best for this processor, of at most `max_lanes` floats a vector.
const TrainingRows& kernels(int max_lanes) {
    const TrainingRows* found = nullptr;
    if (max_lanes >= 16) found = codemill::training_rows_avx512();
    if (!found && max_lanes >= 8) found = codemill::training_rows_avx2();
    return found ? *found : *codemill::training_rows_plain();
}

float* scratch_of_thread(size_t floats) {
    thread_local codemill::Scratch memory;
    return memory.floats(floats);
}

template <class Work>
int for_each_part(int num_threads, int64_t count, int64_t size, const Work& work) {
    const auto part = [&](size_t index) {
        const int64_t first = static_cast<int64_t>(index) * size;
        work(index, first, std::min(count, first + size));
    };
    return codemill::training_for(num_threads, (count + size - 1) / size, part) ? 0 : 1;
}

}  // namespace

// All return 0, or 1 if memory ran out.
extern "C" {

__attribute__((visibility("default"))) int codemill_norm_forward(const NormPass* pass, int num_threads, int max_lanes) {
    const TrainingRows& rows = kernels(max_lanes);
    return for_each_part(num_threads, pass->rows, pass->rows_of_part,
                         [&](size_t, int64_t first, int64_t stop) {
                             rows.norm_forward(*pass, first, stop, scratch_of_thread(codemill::norm_scratch(pass->size)));
                         });
}

__attribute__((visibility("default"))) int codemill_norm_backward(const NormPass* pass, int num_threads, int max_lanes) {
    const TrainingRows& rows = kernels(max_lanes);
    return for_each_part(num_threads, pass->rows, pass->rows_of_part,
                         [&](size_t part, int64_t first, int64_t stop) {
                             rows.norm_backward(*pass, first, stop, pass->weight_gradients + part * pass->size,
                                                scratch_of_thread(codemill::norm_scratch(pass->size)));
                         });
}

__attribute__((visibility("default"))) int codemill_swiglu_forward(const SwigluPass* pass, int num_threads,
                                                                   int max_lanes) {
    const TrainingRows& rows = kernels(max_lanes);
    return for_each_part(num_threads, pass->count, codemill::kSwigluNumbers,
                         [&](size_t, int64_t first, int64_t stop) { rows.swiglu_forward(*pass, first, stop); });
}

__attribute__((visibility("default"))) int codemill_swiglu_backward(const SwigluPass* pass, int num_threads,
                                                                    int max_lanes) {
    const TrainingRows& rows = kernels(max_lanes);
    return for_each_part(num_threads, pass->count, codemill::kSwigluNumbers,
                         [&](size_t, int64_t first, int64_t stop) { rows.swiglu_backward(*pass, first, stop); });
}

}  // extern "C"
