// For x86-64 with AMX, the matrix units of bytes: many rows with packed weights. The rest is as with AVX-512.
#include "product.h"

#if defined(__x86_64__) && defined(__linux__)

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <utility>

#include "processor.h"
#include "targets.h"

BEGIN_TARGET("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8")
#include "vectors.h"

namespace {

using codemill::kBlockRows;
using codemill::Matrix;
using codemill::Output;
using codemill::Rows;

constexpr int kTileRows = 12;      // of activations: with two blocks their sums leave eight registers free
constexpr int kPanelBlocks = 2;    // of weights
constexpr int kPanelColumns = 512;  // a panel stays in the first-level cache
constexpr int kUnit = 32;          // columns that a tile has, or twice as many

// kPanelBlocks blocks of weights as bytes, some groups of them at a time, and what goes with them.
struct Panel {
    int8_t* weights;  // [group, block, 16 * g]
    float* scale;     // [group, block, 16]
    float* minimum;   // the same
    float* sums;      // [tile of rows, kTileRows, block, 16]
    int32_t* dots;    // twice [block, kTileRows, 16]: of this group and the next
    int first_group, num_groups;
};

constexpr size_t kPanelFloats = kPanelBlocks * kBlockRows * (kPanelColumns / 4 + 2 * kPanelColumns / kUnit);
constexpr size_t kDots = kPanelBlocks * kTileRows * kBlockRows;

inline int groups_at_once(const Matrix& weight) {
    return weight.group_size < kPanelColumns ? kPanelColumns / weight.group_size : 1;
}

size_t panel_bytes(const Matrix& weight, int, int num_rows) {
    if (!weight.packed()) return 0;
    const size_t num_tiles = (num_rows + kTileRows - 1) / kTileRows;
    return 4 * (kPanelFloats + (num_tiles + 2) * kDots);
}

inline Panel new_panel(uint8_t* memory) {
    float* const weights = reinterpret_cast<float*>(memory);
    float* const scale = weights + kPanelBlocks * kBlockRows * kPanelColumns / 4;
    float* const minimum = scale + kPanelBlocks * kBlockRows * kPanelColumns / kUnit;
    float* const dots = weights + kPanelFloats;
    return {reinterpret_cast<int8_t*>(weights), scale, minimum, dots + 2 * kDots, reinterpret_cast<int32_t*>(dots), 0, 0};
}

// 16 rows and a group; signed where `zero` is not 0.
inline void unpack_group(const Matrix& weight, const uint8_t* from, int zero, int8_t* to) {
    const __m512i low = _mm512_set1_epi8(15), zeros = _mm512_set1_epi8(static_cast<char>(zero));
    for (size_t i = 0; i < weight.group_bytes(); i += 64) {
        const __m512i x = _mm512_loadu_si512(from + i);
        if (weight.kind == codemill::kInt8) {
            _mm512_storeu_si512(to + i, _mm512_sub_epi8(x, zeros));
            continue;
        }
        _mm512_storeu_si512(to + 2 * i, _mm512_sub_epi8(_mm512_and_si512(x, low), zeros));
        const __m512i high = _mm512_and_si512(_mm512_srli_epi16(x, 4), low);
        _mm512_storeu_si512(to + 2 * i + 64, _mm512_sub_epi8(high, zeros));
    }
}

inline void load_scales(const uint16_t* from, float* to) {
    _mm512_storeu_ps(to, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
}

template <int BLOCKS>
void unpack(const Matrix& weight, int first_block, const Panel& panel) {
    const size_t size = static_cast<size_t>(kBlockRows) * weight.group_size;
    for (int i = 0; i < panel.num_groups; ++i) {
        const int group = panel.first_group + i;
        for (int b = 0; b < BLOCKS; ++b) {
            const uint8_t* const from = weight.block(first_block + b) + group * weight.group_bytes();
            unpack_group(weight, from, weight.zero(), panel.weights + (i * BLOCKS + b) * size);
            const size_t at = weight.scales_before(first_block + b) + group * kBlockRows;
            load_scales(weight.scale + at, panel.scale + (i * BLOCKS + b) * kBlockRows);
            if (weight.minimum) load_scales(weight.minimum + at, panel.minimum + (i * BLOCKS + b) * kBlockRows);
        }
    }
    asm volatile("" ::: "memory");  // the compiler does not know that tiles are read from memory
}

// Tiles 0 and 1 hold dot products of a group, 2 and 3 those of the next; 4 activations, 5 and 6 weights.
void configure_tiles(int columns) {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {};
        uint8_t rows[16] = {};
    } tiles;
    for (const int dots : {0, 1, 2, 3}) tiles.row_bytes[dots] = 64, tiles.rows[dots] = kTileRows;
    for (const int weights : {5, 6}) tiles.row_bytes[weights] = 64, tiles.rows[weights] = columns / 4;
    tiles.row_bytes[4] = columns, tiles.rows[4] = kTileRows;
    asm volatile("" : : "r"(&tiles) : "memory");  // GCC takes the instruction to read the first eight bytes alone
    _tile_loadconfig(&tiles);
}

// The instructions by themselves: those of GCC's header want the tile's number written out.
template <int TILE>
inline __attribute__((always_inline)) void set_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(TILE));
}

template <int TILE>
inline __attribute__((always_inline)) void load_tile(const int8_t* from, size_t stride) {
    asm volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(TILE), "r"(from), "r"(stride));
}

// TO += A * B, where weights (B) are signed or not.
template <int TO, int A, int B, bool SIGNED>
inline __attribute__((always_inline)) void add_product() {
    if constexpr (SIGNED) asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(TO), "i"(A), "i"(B));
    else asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(TO), "i"(A), "i"(B));
}

template <int TILE>
inline __attribute__((always_inline)) void store_tile(int32_t* to) {
    asm volatile("tilestored %%tmm%c0, (%1,%2,1)" : : "i"(TILE), "r"(to), "r"(size_t{64}) : "memory");
}

// The dot products of a group into tiles FIRST and FIRST + 1.
template <int FIRST, int BLOCKS, bool SIGNED>
inline __attribute__((always_inline)) void multiply(const int8_t* x, size_t stride, const int8_t* weights, int group_size,
                                                    int columns) {
    set_zero<FIRST>();
    if constexpr (BLOCKS == 2) set_zero<FIRST + 1>();
    for (int k = 0; k < group_size; k += columns) {
        load_tile<4>(x + k, stride);
        load_tile<5>(weights + k * kBlockRows, 64);
        add_product<FIRST, 4, 5, SIGNED>();
        if constexpr (BLOCKS == 2) {
            load_tile<6>(weights + (group_size + k) * kBlockRows, 64);
            add_product<FIRST + 1, 4, 6, SIGNED>();
        }
    }
}

// Those tiles to memory, as `panel.dots` has them.
template <int FIRST, int BLOCKS>
inline __attribute__((always_inline)) void store_dots(int32_t* dots) {
    store_tile<FIRST>(dots);
    if constexpr (BLOCKS == 2) store_tile<FIRST + 1>(dots + kTileRows * kBlockRows);
}

// What a group adds to the sums: the same operations in the same order as `Tile::scale` in product_packed.h.
template <int BLOCKS, bool SIGNED>
inline __attribute__((always_inline)) void scale(const Panel& panel, const Rows& rows, size_t num_groups, int i,
                                                 const int32_t* dots, __m512 (&sums)[kTileRows][BLOCKS]) {
    const float* const inputs = rows.scale + panel.first_group + i;
    const int32_t* const totals = rows.sum + panel.first_group + i;
    __m512 scales[BLOCKS], minimums[BLOCKS];
    for (int b = 0; b < BLOCKS; ++b) {
        scales[b] = _mm512_loadu_ps(panel.scale + (i * BLOCKS + b) * kBlockRows);
        if (!SIGNED) minimums[b] = _mm512_loadu_ps(panel.minimum + (i * BLOCKS + b) * kBlockRows);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kTileRows; ++row) {
        const __m512 input = _mm512_set1_ps(inputs[row * num_groups]);
        for (int b = 0; b < BLOCKS; ++b) {
            const __m512 dot = _mm512_cvtepi32_ps(_mm512_loadu_si512(dots + (b * kTileRows + row) * kBlockRows));
            sums[row][b] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scales[b], input), sums[row][b]);
            if constexpr (!SIGNED) {
                const __m512 total = _mm512_cvtepi32_ps(_mm512_set1_epi32(totals[row * num_groups]));
                sums[row][b] = _mm512_fmadd_ps(_mm512_mul_ps(minimums[b], input), total, sums[row][b]);
            }
        }
    }
}

// A tile of rows with a panel: adds to `tile_sums`. The units multiply a group while the one before is scaled.
template <int BLOCKS, bool SIGNED>
void add_panel(const Panel& panel, const Rows& rows, int columns, float* tile_sums) {
    const size_t stride = rows.padded(), num_groups = rows.num_groups();
    const int group_size = rows.group_size;
    const int8_t* const x = rows.quantized + static_cast<size_t>(panel.first_group) * group_size;
    __m512 sums[kTileRows][BLOCKS];
#pragma GCC unroll 16  // or else the sums are not kept in registers
    for (int row = 0; row < kTileRows; ++row) {
        for (int b = 0; b < BLOCKS; ++b) sums[row][b] = _mm512_loadu_ps(tile_sums + (row * BLOCKS + b) * kBlockRows);
    }
    const auto start = [&]<int FIRST>(int i) __attribute__((always_inline)) {
        if (i >= panel.num_groups) return;
        const int8_t* const weights = panel.weights + static_cast<size_t>(i) * BLOCKS * kBlockRows * group_size;
        multiply<FIRST, BLOCKS, SIGNED>(x + i * group_size, stride, weights, group_size, columns);
    };
    const auto finish = [&]<int FIRST>(int i) __attribute__((always_inline)) {
        if (i < panel.num_groups) store_dots<FIRST, BLOCKS>(panel.dots + i % 2 * kDots);
    };
    // While a group is scaled, the dot products of the next are stored and those of the one after it computed.
    start.template operator()<0>(0);
    start.template operator()<2>(1);
    finish.template operator()<0>(0);
    for (int i = 0; i < panel.num_groups; i += 2) {
        finish.template operator()<2>(i + 1);
        start.template operator()<0>(i + 2);
        scale<BLOCKS, SIGNED>(panel, rows, num_groups, i, panel.dots, sums);
        if (i + 1 == panel.num_groups) break;
        finish.template operator()<0>(i + 2);
        start.template operator()<2>(i + 3);
        scale<BLOCKS, SIGNED>(panel, rows, num_groups, i + 1, panel.dots + kDots, sums);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kTileRows; ++row) {
        for (int b = 0; b < BLOCKS; ++b) _mm512_storeu_ps(tile_sums + (row * BLOCKS + b) * kBlockRows, sums[row][b]);
    }
}

template <int BLOCKS>
void put_row(const Matrix& weight, int first_block, const float* sums, const Output& out, size_t row) {
    for (int b = 0; b < BLOCKS; ++b) {
        const int first = (first_block + b) * kBlockRows, left = weight.num_rows - first;
        const __mmask16 mask = left < kBlockRows ? (1u << left) - 1 : 0xffffu;
        float* const to = out.values + row * out.stride + first;
        const __m512 x = _mm512_loadu_ps(sums + b * kBlockRows);
        _mm512_mask_storeu_ps(to, mask, out.add ? _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), x) : x);
    }
}

// The outputs of BLOCKS blocks. The last tile of rows may begin among those of the one before: rows that both compute
// are stored once.
template <int BLOCKS, bool SIGNED>
void compute(const Matrix& weight, int first_block, const Rows& rows, int num_rows, Output out, int columns, Panel panel) {
    constexpr size_t kSums = kTileRows * BLOCKS * kBlockRows;
    const int num_tiles = (num_rows + kTileRows - 1) / kTileRows, num_groups = weight.num_groups();
    const auto first_row = [&](int tile) {
        return tile + 1 < num_tiles ? tile * kTileRows : num_rows - kTileRows;
    };
    __builtin_memset(panel.sums, 0, num_tiles * kSums * sizeof(float));
    for (; panel.first_group < num_groups; panel.first_group += panel.num_groups) {
        const int left = num_groups - panel.first_group;
        panel.num_groups = left < groups_at_once(weight) ? left : groups_at_once(weight);
        unpack<BLOCKS>(weight, first_block, panel);
        for (int tile = 0; tile < num_tiles; ++tile) {
            add_panel<BLOCKS, SIGNED>(panel, rows.from(first_row(tile)), columns, panel.sums + tile * kSums);
        }
    }
    for (int row = 0; row < num_rows; ++row) {
        const int tile = row / kTileRows;
        const float* const sums = panel.sums + tile * kSums + (row - first_row(tile)) * BLOCKS * kBlockRows;
        put_row<BLOCKS>(weight, first_block, sums, out, row);
    }
}

template <int BLOCKS>
void compute(const Matrix& weight, int first_block, const Rows& rows, int num_rows, Output out, int columns, uint8_t* memory) {
    const Panel panel = new_panel(memory);
    if (weight.minimum) return compute<BLOCKS, false>(weight, first_block, rows, num_rows, out, columns, panel);
    compute<BLOCKS, true>(weight, first_block, rows, num_rows, out, columns, panel);
}

void many_rows(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out,
               uint8_t* memory) {
    if (!weight.packed() || weight.group_size % kUnit || num_rows < kTileRows) {
        return codemill::product_kernels_avx512()->few_rows(weight, first_block, num_blocks, rows, num_rows, out);
    }
    const int columns = weight.group_size % (2 * kUnit) ? kUnit : 2 * kUnit;
    configure_tiles(columns);
    for (; num_blocks >= 2; first_block += 2, num_blocks -= 2) {
        compute<2>(weight, first_block, rows, num_rows, out, columns, memory);
    }
    if (num_blocks) compute<1>(weight, first_block, rows, num_rows, out, columns, memory);
    _tile_release();
}

// Linux keeps the tiles of threads only for processes that ask for it.
bool may_use_tiles() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
END_TARGET

const codemill::ProductKernels* codemill::product_kernels_amx() {
    const ProductKernels* const base = product_kernels_avx512();
    static const bool supported = base && has_amx_tiles() && has_amx_int8() && may_use_tiles();
    if (!supported) return nullptr;
    static const ProductKernels kernels = {base->lanes, base->quantize, base->few_rows, many_rows, panel_bytes, kPanelBlocks};
    return &kernels;
}

#else

const codemill::ProductKernels* codemill::product_kernels_amx() { return nullptr; }

#endif
