#include "mapped_pages.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>

namespace codemill {
namespace {

// Linux reads no more at one request than the disk's readahead, which is 128 KiB unless somebody has changed it.
constexpr size_t kRequestBytes = 1 << 17;

}  // namespace

void request_pages(const void* begin, size_t num_bytes) {
#if defined(MADV_WILLNEED)
    static const size_t page_bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const uintptr_t end = reinterpret_cast<uintptr_t>(begin) + num_bytes;
    uintptr_t at = reinterpret_cast<uintptr_t>(begin) / page_bytes * page_bytes;
    for (; at < end; at += kRequestBytes) {
        // Advice only: where it is refused, pages are read when they are used.
        madvise(reinterpret_cast<void*>(at), std::min<size_t>(kRequestBytes, end - at), MADV_WILLNEED);
    }
#else
    (void)begin, (void)num_bytes;
#endif
}

void request_pages(const Matrix& matrix) {
    if (!matrix.packed()) {
        request_pages(matrix.weight, matrix.num_rows * (matrix.block_bytes() / kBlockRows));
        return;
    }
    const size_t scale_bytes = matrix.scales_before(matrix.num_blocks()) * sizeof(uint16_t);
    request_pages(matrix.weight, matrix.num_blocks() * matrix.block_bytes());
    request_pages(matrix.scale, scale_bytes);
    if (matrix.minimum) request_pages(matrix.minimum, scale_bytes);
}

}  // namespace codemill

// See request_pages. Returns 0.
extern "C" __attribute__((visibility("default"))) int codemill_request_pages(const void* begin, size_t num_bytes) {
    codemill::request_pages(begin, num_bytes);
    return 0;
}
