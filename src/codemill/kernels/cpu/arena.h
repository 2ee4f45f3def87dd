// Memory of a call cut into arrays.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matrix.h"
#include "scratch.h"

namespace codemill {

// Arrays one after the other, each in cache lines of its own. A first pass without memory counts the bytes.
class Arena {
public:
    explicit Arena(void* memory = nullptr) : memory_(static_cast<uint8_t*>(memory)) {}

    template <class Number>
    Number* take(size_t count) {
        uint8_t* const own = memory_ ? memory_ + used_ : nullptr;
        used_ += (count * sizeof(Number) + 63) / 64 * 64;
        return reinterpret_cast<Number*>(own);
    }
    size_t used() const { return used_; }

private:
    uint8_t* memory_;
    size_t used_ = 0;
};

// Room for the quantised form of rows, of any group size up to kMaxGroup.
inline void take_quantized(Rows& rows, size_t num_rows, Arena& arena) {
    const size_t num_groups = rows.num_columns / kMinGroup + 1;
    rows.quantized = arena.take<int8_t>(num_rows * (rows.num_columns + kMaxGroup));
    rows.scale = arena.take<float>(num_rows * num_groups);
    rows.sum = arena.take<int32_t>(num_rows * num_groups);
}

inline void allocate_quantized(Rows& rows, size_t num_rows, Scratch& scratch) {
    Arena count;
    take_quantized(rows, num_rows, count);
    Arena arena(scratch.floats(count.used() / sizeof(float)));
    take_quantized(rows, num_rows, arena);
}

}  // namespace codemill
