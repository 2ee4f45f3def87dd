// Rows of a GGUF file -> blocks of 16 rows of a packed matrix, in the layout that kernels/packed_matrix.py says.
#include <cstdint>

#include "gguf_blocks.h"

namespace {

constexpr int kRows = 16, kGroupColumns = 32;

// The columns of one group, `groups[r]` that of row r: each 32-bit word of a row's beside those of the other rows.
template <int BITS>
void write_columns(const Group* const* groups, uint32_t* weight) {
    constexpr int kWords = kGroupColumns / 4;
    for (int r = 0; r < kRows; ++r) {
        uint32_t words[kWords];
        std::memcpy(words, groups[r]->q, sizeof words);
        for (int w = 0; w < kWords * BITS / 8; ++w) {
            weight[w * kRows + r] = BITS == 8 ? words[w] : words[2 * w] | words[2 * w + 1] << 4;
        }
    }
}

template <class Type>
void repack(const uint8_t* const* rows, int num_rows, int num_groups, uint32_t* weight, uint16_t* scale,
            uint16_t* minimum) {
    constexpr int kGroups = Type::kColumns / kGroupColumns;
    constexpr int kWords = kRows * kGroupColumns * Type::kBits / 32;
    for (int first = 0; first < num_rows; first += kRows) {
        Group tile[kRows][kGroups] = {};  // rows that are not there stay zeros
        for (int g = 0; g < num_groups; g += kGroups) {
            for (int r = 0; r < kRows && first + r < num_rows; ++r) {
                Type::read(rows[first + r] + static_cast<int64_t>(g / kGroups) * Type::kBytes, tile[r]);
            }
            for (int k = 0; k < kGroups; ++k) {
                const Group* groups[kRows];
                for (int r = 0; r < kRows; ++r) {
                    groups[r] = &tile[r][k];
                    scale[r] = tile[r][k].scale;
                    if (minimum) minimum[r] = tile[r][k].minimum;
                }
                write_columns<Type::kBits>(groups, weight);
                weight += kWords;
                scale += kRows;
                if (minimum) minimum += kRows;
            }
        }
    }
}

}  // namespace

// rows: where each of num_rows rows begins; kind: ggml's number of their type. Writes ceil(num_rows / 16) blocks; no
// minimum where the type has none. Returns 2 for a type that it does not know.
extern "C" __attribute__((visibility("default"))) int codemill_repack_gguf(const void* rows, int kind, int num_rows,
                                                                            int num_groups, void* weight, void* scale,
                                                                            void* minimum) {
    const auto run = [&]<class Type>(Type) {
        repack<Type>(static_cast<const uint8_t* const*>(rows), num_rows, num_groups, static_cast<uint32_t*>(weight),
                     static_cast<uint16_t*>(scale), static_cast<uint16_t*>(minimum));
        return 0;
    };
    switch (kind) {
        case 2: return run(Q4_0{});
        case 3: return run(Q4_1{});
        case 6: return run(Q5_0{});
        case 7: return run(Q5_1{});
        case 8: return run(Q8_0{});
        case 11: return run(Q3_K{});
        case 12: return run(Q4_K{});
        case 13: return run(Q5_K{});
        case 14: return run(Q6_K{});
        case 20: return run(Iq4Nl{});
        case 23: return run(Iq4Xs{});
        default: return 2;
    }
}
