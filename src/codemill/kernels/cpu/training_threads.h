// The threads that training's kernels share with PyTorch's operations.
#pragma once

#include <atomic>
#include <cstddef>
#include <new>

#include "thread_pool.h"

#if defined(__linux__)
// Of the OpenMP that PyTorch has loaded, if it has.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*work)(void*), void* context, unsigned num_threads,
                                                    unsigned flags);
#endif

namespace codemill {

// As `parallel_for`, on PyTorch's threads where that is possible: between operations they wait for the next one without
// sleeping, and would hold the processors that threads of our own are woken on. Returns whether memory sufficed.
template <class Function>
bool training_for(int num_threads, size_t count, Function&& function) {
    std::atomic<bool> failed{false};
    auto guarded = [&](size_t index) {
        try {
            function(index);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    };
#if defined(__linux__)
    if (GOMP_parallel && num_threads > 1 && count > 1) {
        struct Context {
            decltype(guarded)& work;
            size_t count;
            std::atomic<size_t> next{0};
        } context{guarded, count};
        const auto work = [](void* shared) {
            Context& mine = *static_cast<Context*>(shared);
            for (size_t index; (index = mine.next++) < mine.count;) mine.work(index);
        };
        GOMP_parallel(work, &context, static_cast<unsigned>(num_threads), 0);
        return !failed;
    }
#endif
    parallel_for(num_threads, count, guarded);
    return !failed;
}

}  // namespace codemill
