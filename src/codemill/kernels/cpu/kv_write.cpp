// The entry from Python to kv_write.h, for int8 caches; what PyTorch's own copy does for other dtypes.
#include <cstddef>
#include <cstdint>

#include "kv_write.h"

// Quantises from [n, H_kv, K] in fp32 into the slots [n] of a cache [slots, H_kv, K] with scales [slots, H_kv].
extern "C" __attribute__((visibility("default"))) int codemill_write_int8_kv(const void* from, const void* slots,
                                                                              void* cache, void* scales, int num_rows,
                                                                              int num_kv_heads, int head_dim) {
    const float* vector = static_cast<const float*>(from);
    for (int row = 0; row < num_rows; ++row) {
        const size_t first = static_cast<size_t>(static_cast<const int64_t*>(slots)[row]) * num_kv_heads;
        for (int head = 0; head < num_kv_heads; ++head, vector += head_dim) {
            write_kv<4>(cache, static_cast<float*>(scales), codemill::Dtype::kInt8, first + head, vector, head_dim);
        }
    }
    return 0;
}
