// Products with packed weights: the part that is the same for every instruction set.
//
// An `Isa` has kLanes; loads of bytes and of fp16 scales; `unpack`, which yields four weights in each 32-bit lane; and
// `dot4`, which adds the sum of four weights times four activations to each lane.
#pragma once

#include "matrix.h"
#include "vectors.h"

namespace {

using codemill::kBlockRows;
using codemill::Matrix;
using codemill::Output;
using codemill::Rows;

// Ahead of the use, into the second-level cache; both measured. The first level's buffers for what is on its way are few.
constexpr int kPrefetchBytes = 8192;

inline int32_t load_four(const int8_t* from) {
    int32_t four;
    __builtin_memcpy(&four, from, sizeof four);
    return four;
}

template <int LANES>
inline void put(const Output& out, size_t row, size_t column, int num_columns, Floats<LANES> x) {
    float* const to = out.values + row * out.stride + column;
    if (num_columns >= LANES) {
        store<LANES>(to, out.add ? load<LANES>(to) + x : x);
        return;
    }
    for (int i = 0; i < num_columns; ++i) to[i] = (out.add ? to[i] : 0.0f) + x[i];
}

// Where a tile finds its weights: in the matrix itself, or unpacked to 8 bits in a panel.
struct Source {
    const uint8_t* bytes;  // of the first block
    size_t block_bytes, group_bytes;
    int zero;  // what the unsigned weights exceed the signed ones by
};

// Outputs of BLOCKS blocks for ROWS rows. GROUP is the group size where it is known beforehand, and 0 for any other.
template <class Isa, int BITS, int GROUP, int ROWS, int BLOCKS>
class Tile {
    static constexpr int LANES = Isa::kLanes;
    static constexpr int kPerBlock = kBlockRows / LANES;
    static constexpr int kVectors = kPerBlock * BLOCKS;
    using Ints = typename Lanes<LANES>::Ints;

public:
    Tile(const Matrix& weight, const Source& source, int first_block, const Rows& rows)
        : weight_(weight), source_(source), first_block_(first_block), rows_(rows) {}

    inline __attribute__((always_inline)) void compute(const Output& out) {
        const int num_groups = weight_.num_groups();
        for (int group = 0; group < num_groups; ++group) add_group(group);
        for (int row = 0; row < ROWS; ++row) {
            for (int v = 0; v < kVectors; ++v) {
                const int column = first_block_ * kBlockRows + v * LANES;
                put<LANES>(out, row, column, weight_.num_rows - column, sums_[row][v]);
            }
        }
    }

private:
    inline __attribute__((always_inline)) void add_group(int group) {
        const int size = GROUP ? GROUP : weight_.group_size, num_groups = weight_.num_groups();
        const int bias = Isa::template kCentred<BITS> - source_.zero;
        Ints dots[ROWS][kVectors];
        for (int row = 0; row < ROWS; ++row) {
            const int32_t sum = rows_.sum[static_cast<size_t>(row) * num_groups + group];
            for (int v = 0; v < kVectors; ++v) dots[row][v] = Ints{} + bias * sum;
        }
        const int8_t* const x = rows_.quantized + static_cast<size_t>(group) * size;
        const size_t stride = static_cast<size_t>(num_groups) * size;
        const uint8_t* const bytes = source_.bytes + group * source_.group_bytes;
        constexpr int kStep = 32 / BITS;  // columns of a 64-byte load
#pragma GCC unroll 16
        for (int step = 0; step < size / kStep; ++step) {
            typename Isa::Bytes weights[kVectors];
            for (int v = 0; v < kVectors; ++v) {
                const uint8_t* from = bytes + v / kPerBlock * source_.block_bytes + step * 64 + v % kPerBlock * 4 * LANES;
                if (BLOCKS == 1 && v % kPerBlock == 0) __builtin_prefetch(from + kPrefetchBytes, 0, 2);
                weights[v] = Isa::load(from);
            }
            for (int part = 0; part < kStep / 4; ++part) {
                for (int v = 0; v < kVectors; ++v) {
                    const auto four = Isa::template unpack<BITS>(weights[v], part);
                    for (int row = 0; row < ROWS; ++row) {
                        const int32_t inputs = load_four(x + row * stride + step * kStep + 4 * part);
                        dots[row][v] = Isa::template dot4<BITS>(dots[row][v], four, inputs);
                    }
                }
            }
        }
        scale(group, dots);
    }

    inline __attribute__((always_inline)) void scale(int group, Ints (&dots)[ROWS][kVectors]) {
        const int num_groups = weight_.num_groups();
        for (int v = 0; v < kVectors; ++v) {
            const size_t at = weight_.scales_before(first_block_ + v / kPerBlock) + group * kBlockRows + v % kPerBlock * LANES;
            const Floats<LANES> scales = Isa::load_scales(weight_.scale + at);
            for (int row = 0; row < ROWS; ++row) {
                const size_t input = static_cast<size_t>(row) * num_groups + group;
                const Floats<LANES> dot = __builtin_convertvector(dots[row][v], Floats<LANES>);
                sums_[row][v] = Isa::fma(dot, scales * rows_.scale[input], sums_[row][v]);
            }
            if (weight_.minimum) {
                const Floats<LANES> minimum = Isa::load_scales(weight_.minimum + at);
                for (int row = 0; row < ROWS; ++row) {
                    const size_t input = static_cast<size_t>(row) * num_groups + group;
                    const Floats<LANES> sum = Floats<LANES>{} + static_cast<float>(rows_.sum[input]);
                    sums_[row][v] = Isa::fma(minimum * rows_.scale[input], sum, sums_[row][v]);
                }
            }
        }
    }

    const Matrix& weight_;
    const Source& source_;
    const int first_block_;
    const Rows rows_;
    Floats<LANES> sums_[ROWS][kVectors] = {};
};

template <class Isa, int BITS, int GROUP, int ROWS>
inline int few_rows_step(const Matrix& weight, const Source& source, int block, const Rows& rows, int row, Output out) {
    out.values += row * out.stride;
    Tile<Isa, BITS, GROUP, ROWS, 1>(weight, source, block, rows.from(row)).compute(out);
    return row + ROWS;
}

// Every block with all rows while it is in the cache.
template <class Isa, int BITS, int GROUP>
void packed_few_rows(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out) {
    for (int block = first_block; block < first_block + num_blocks; ++block) {
        const Source source = {weight.block(block), weight.block_bytes(), weight.group_bytes(), weight.zero()};
        int row = 0;
        if constexpr (Isa::kMaxRows >= 8) {
            while (num_rows - row >= 8) row = few_rows_step<Isa, BITS, GROUP, 8>(weight, source, block, rows, row, out);
        }
        while (num_rows - row >= 4) row = few_rows_step<Isa, BITS, GROUP, 4>(weight, source, block, rows, row, out);
        if (num_rows - row >= 2) row = few_rows_step<Isa, BITS, GROUP, 2>(weight, source, block, rows, row, out);
        if (num_rows - row >= 1) row = few_rows_step<Isa, BITS, GROUP, 1>(weight, source, block, rows, row, out);
    }
}

// Blocks of weights as 8 bits, in the order in which they lie.
template <class Isa>
void unpack_panel(const Matrix& weight, int first_block, int num_blocks, uint8_t* panel) {
    const uint8_t* from = weight.block(first_block);
    const size_t size = num_blocks * weight.block_bytes();
    for (size_t i = 0; i < size; i += 64) {
        for (int k = 0; k < 64; ++k) {
            panel[2 * i + k] = from[i + k] & 15;
            panel[2 * i + 64 + k] = from[i + k] >> 4;
        }
    }
}

size_t panel_bytes(const Matrix& weight, int num_blocks, int) {
    return weight.kind == codemill::kInt4 ? 2 * num_blocks * weight.block_bytes() : 0;
}

inline Source panel_source(const Matrix& weight, const uint8_t* panel) {
    const size_t group_bytes = static_cast<size_t>(kBlockRows) * weight.group_size;
    return {panel, weight.num_groups() * group_bytes, group_bytes, weight.zero()};
}

template <class Isa, int GROUP, int ROWS, int BLOCKS>
inline int many_rows_step(const Matrix& weight, const Source& source, int block, const Rows& rows, int row, Output out) {
    out.values += row * out.stride;
    Tile<Isa, 8, GROUP, ROWS, BLOCKS>(weight, source, block, rows.from(row)).compute(out);
    return row + ROWS;
}

// All rows with each panel of blocks, which is unpacked once.
template <class Isa, int GROUP>
void packed_many_rows(const Matrix& weight, int first_block, int num_blocks, const Rows& rows, int num_rows, Output out,
                      uint8_t* panel) {
    constexpr int kBlocks = Isa::kPanelBlocks, kRows = Isa::kPanelRows;
    if (weight.kind == codemill::kInt4) unpack_panel<Isa>(weight, first_block, num_blocks, panel);
    const uint8_t* const bytes = weight.kind == codemill::kInt4 ? panel : weight.block(first_block);
    Source source = panel_source(weight, bytes);
    int block = 0;
    for (; block + kBlocks <= num_blocks; block += kBlocks, source.bytes += kBlocks * source.block_bytes) {
        int row = 0;
        while (num_rows - row >= kRows) row = many_rows_step<Isa, GROUP, kRows, kBlocks>(weight, source, first_block + block, rows, row, out);
        while (row < num_rows) row = many_rows_step<Isa, GROUP, 1, kBlocks>(weight, source, first_block + block, rows, row, out);
    }
    for (; block < num_blocks; ++block, source.bytes += source.block_bytes) {
        int row = 0;
        while (num_rows - row >= kRows) row = many_rows_step<Isa, GROUP, kRows, 1>(weight, source, first_block + block, rows, row, out);
        while (row < num_rows) row = many_rows_step<Isa, GROUP, 1, 1>(weight, source, first_block + block, rows, row, out);
    }
}

}  // namespace
