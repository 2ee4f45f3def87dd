// How numbers are stored, by the numbers that Python passes.
#pragma once

namespace codemill {

enum class Dtype : int { kFloat32 = 0, kBfloat16 = 1, kInt8 = 2 };

}  // namespace codemill
