// Memory that grows and is kept for the next call, in cache lines of its own.
#pragma once

#include <cstddef>
#include <vector>

namespace codemill {

class Scratch {
public:
    // Throws std::bad_alloc. What was there before is lost.
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

}  // namespace codemill
