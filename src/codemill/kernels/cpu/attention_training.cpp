// Shares the key/value heads of all documents among threads.
#include "attention_training.h"

#include "scratch.h"
#include "training_threads.h"

extern "C" {

// Whether this processor has the kernel; it may not be called where it has not.
__attribute__((visibility("default"))) int codemill_has_attention_training() {
    return codemill::attention_backward_amx() != nullptr;
}

// Returns 0, or 1 if memory ran out.
__attribute__((visibility("default"))) int codemill_attention_backward(const codemill::AttentionPass* pass,
                                                                       int num_threads) {
    const codemill::AttentionBackward& kernels = *codemill::attention_backward_amx();
    const auto item = [&](size_t index) {
        const int document = static_cast<int>(index) / pass->num_kv_heads;
        const int kv_head = static_cast<int>(index) % pass->num_kv_heads;
        thread_local codemill::Scratch memory;
        kernels.backward(*pass, document, kv_head, memory.floats(kernels.scratch_floats(*pass, document)));
    };
    const size_t count = static_cast<size_t>(pass->num_documents) * pass->num_kv_heads;
    return codemill::training_for(num_threads, count, item) ? 0 : 1;
}

}  // extern "C"
