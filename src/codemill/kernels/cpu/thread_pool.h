// Threads of our own that share the items of one call. They are parked between calls.
#pragma once

#include <cstddef>

namespace codemill {

// Calls work(context, i) for every i below `count`, on at most `num_threads` threads, the caller's among them; returns
// when all are done. Which thread takes which item is not fixed: results must not depend on it.
void parallel_for(int num_threads, size_t count, void (*work)(void* context, size_t index), void* context);

template <class Function>
void parallel_for(int num_threads, size_t count, Function& function) {
    const auto call = [](void* context, size_t index) { (*static_cast<Function*>(context))(index); };
    parallel_for(num_threads, count, call, &function);
}

}  // namespace codemill
