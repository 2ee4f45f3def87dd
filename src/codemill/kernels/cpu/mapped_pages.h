// Weights in mapped files, whose pages may not be in memory.
#pragma once

#include <cstddef>

#include "matrix.h"

namespace codemill {

// Has the system start to read what of this memory it does not have. Does not wait for it: who uses the memory does.
void request_pages(const void* begin, size_t num_bytes);
void request_pages(const Matrix& matrix);

}  // namespace codemill
