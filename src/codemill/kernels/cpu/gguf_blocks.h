// The quantised blocks of GGUF files, read as groups of 32 columns in the form of packed matrices. What is kept and what
// is rounded is said in models/gguf_packed.py, whose PyTorch form gives the same bits.
//
// A type has kColumns and kBytes, of a block; kBits, of the packed form; and `read`, which fills kColumns / 32 groups.
// Layouts: ggml-common.h and ggml-quants.c.
#pragma once

#include <cstdint>
#include <cstring>

namespace {

// q is unsigned; scale and minimum are fp16.
struct Group {
    uint8_t q[32];
    uint16_t scale, minimum;
};

inline uint16_t load_bits(const uint8_t* from) {
    uint16_t bits;
    std::memcpy(&bits, from, sizeof bits);
    return bits;
}

inline float to_float(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ffu;
    if (exponent == 0) {
        const float size = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -size : size;
    }
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The nearest, the even one of two that are as near; infinity beyond what fp16 has.
inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return sign | 0x7e00u;
    if (bits >= 0x477ff000u) return sign | 0x7c00u;
    if (bits < 0x38800000u) {  // below the normal numbers: multiples of 2^-24, which adding 1/2 leaves in the low bits
        float size;
        std::memcpy(&size, &bits, sizeof size);
        size += 0.5f;
        std::memcpy(&bits, &size, sizeof bits);
        return sign | static_cast<uint16_t>(bits - 0x3f000000u);
    }
    return sign | static_cast<uint16_t>((bits + 0xfffu + (bits >> 13 & 1) - 0x38000000u) >> 13);
}

inline float load_half(const uint8_t* from) { return to_float(load_bits(from)); }

inline void read_nibbles(const uint8_t* from, int count, uint8_t* low, uint8_t* high) {
    for (int i = 0; i < count; ++i) {
        low[i] = from[i] & 15;
        high[i] = from[i] >> 4;
    }
}

inline void add_fifth_bits(const uint8_t* from, uint8_t* q) {
    for (int i = 0; i < 32; ++i) q[i] |= (from[i / 8] >> i % 8 & 1) << 4;
}

struct Q4_0 {
    static constexpr int kColumns = 32, kBytes = 18, kBits = 4;
    static void read(const uint8_t* block, Group* group) {
        group->scale = load_bits(block);
        read_nibbles(block + 2, 16, group->q, group->q + 16);
    }
};

struct Q4_1 {
    static constexpr int kColumns = 32, kBytes = 20, kBits = 4;
    static void read(const uint8_t* block, Group* group) {
        group->scale = load_bits(block);
        group->minimum = load_bits(block + 2);
        read_nibbles(block + 4, 16, group->q, group->q + 16);
    }
};

struct Q5_0 {
    static constexpr int kColumns = 32, kBytes = 22, kBits = 8;
    static void read(const uint8_t* block, Group* group) {
        group->scale = load_bits(block);
        read_nibbles(block + 6, 16, group->q, group->q + 16);
        add_fifth_bits(block + 2, group->q);
        for (uint8_t& q : group->q) q += 128 - 16;
    }
};

struct Q5_1 {
    static constexpr int kColumns = 32, kBytes = 24, kBits = 8;
    static void read(const uint8_t* block, Group* group) {
        group->scale = load_bits(block);
        group->minimum = load_bits(block + 2);
        read_nibbles(block + 8, 16, group->q, group->q + 16);
        add_fifth_bits(block + 4, group->q);
    }
};

struct Q8_0 {
    static constexpr int kColumns = 32, kBytes = 34, kBits = 8;
    static void read(const uint8_t* block, Group* group) {
        group->scale = load_bits(block);
        for (int i = 0; i < 32; ++i) group->q[i] = block[2 + i] ^ 128;
    }
};

// What the numbers of IQ4_NL and IQ4_XS stand for, plus 128.
constexpr uint8_t kIq4Values[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

inline void read_iq4(const uint8_t* from, uint8_t* q) {
    for (int i = 0; i < 16; ++i) {
        q[i] = kIq4Values[from[i] & 15];
        q[16 + i] = kIq4Values[from[i] >> 4];
    }
}

struct Iq4Nl {
    static constexpr int kColumns = 32, kBytes = 18, kBits = 8;
    static void read(const uint8_t* block, Group* group) {
        group->scale = load_bits(block);
        read_iq4(block + 2, group->q);
    }
};

struct Iq4Xs {
    static constexpr int kColumns = 256, kBytes = 136, kBits = 8;
    static void read(const uint8_t* block, Group* groups) {
        const float factor = load_half(block);
        const int high = load_bits(block + 2);
        for (int g = 0; g < 8; ++g) {
            const int scale = (block[4 + g / 2] >> g % 2 * 4 & 15) | (high >> 2 * g & 3) << 4;
            groups[g].scale = to_half(factor * static_cast<float>(scale - 32));
            read_iq4(block + 8 + 16 * g, groups[g].q);
        }
    }
};

// Factors, and 6 bits for the scale and the minimum of each group; those of groups 4 to 7 are in two pieces.
inline void read_k_scales(const uint8_t* block, Group* groups) {
    const float factor = load_half(block), factor_of_minimum = load_half(block + 2);
    const uint8_t *scales = block + 4, *minima = block + 8, *high = block + 12;
    for (int g = 0; g < 8; ++g) {
        const int i = g % 4;
        const int scale = g < 4 ? scales[i] & 63 : (high[i] & 15) | (scales[i] >> 2 & 48);
        const int minimum = g < 4 ? minima[i] & 63 : high[i] >> 4 | (minima[i] >> 2 & 48);
        groups[g].scale = to_half(factor * static_cast<float>(scale));
        groups[g].minimum = to_half(-(factor_of_minimum * static_cast<float>(minimum)));
    }
}

struct Q4_K {
    static constexpr int kColumns = 256, kBytes = 144, kBits = 4;
    static void read(const uint8_t* block, Group* groups) {
        read_k_scales(block, groups);
        for (int g = 0; g < 8; g += 2) read_nibbles(block + 16 + 16 * g, 32, groups[g].q, groups[g + 1].q);
    }
};

struct Q5_K {
    static constexpr int kColumns = 256, kBytes = 176, kBits = 8;
    static void read(const uint8_t* block, Group* groups) {
        read_k_scales(block, groups);
        for (int g = 0; g < 8; g += 2) read_nibbles(block + 48 + 16 * g, 32, groups[g].q, groups[g + 1].q);
        for (int g = 0; g < 8; ++g) {
            for (int i = 0; i < 32; ++i) groups[g].q[i] |= (block[16 + i] >> g & 1) << 4;
        }
    }
};

// Integers of -4 to 3 times scales of -32 to 31 for 16 columns: -124 to 128.
struct Q3_K {
    static constexpr int kColumns = 256, kBytes = 110, kBits = 8;
    static void read(const uint8_t* block, Group* groups) {
        const uint8_t *high = block, *low = block + 32, *scales = block + 96;
        for (int g = 0; g < 8; ++g) {
            int8_t scale[2];
            for (int half = 0; half < 2; ++half) {
                const int s = 2 * g + half;
                const int low_bits = scales[s % 8] >> s / 8 * 4 & 15, high_bits = scales[8 + s % 4] >> s / 4 * 2 & 3;
                scale[half] = static_cast<int8_t>((low_bits | high_bits << 4) - 32);
            }
            int16_t product[32], largest = 0;
            for (int i = 0; i < 32; ++i) {
                const int number = (low[g / 4 * 32 + i] >> g % 4 * 2 & 3) | (high[i] >> g & 1) << 2;
                product[i] = static_cast<int16_t>((number - 4) * scale[i / 16]);
                largest = product[i] > largest ? product[i] : largest;
            }
            const int sign = largest > 127 ? -1 : 1;
            for (int i = 0; i < 32; ++i) groups[g].q[i] = static_cast<uint8_t>(product[i] * sign + 128);
            groups[g].scale = load_bits(block + 108) ^ (sign < 0 ? 0x8000 : 0);
        }
    }
};

// Scales for 16 columns, of which a group gets one: a quarter of the larger.
struct Q6_K {
    static constexpr int kColumns = 256, kBytes = 210, kBits = 8;
    static void read(const uint8_t* block, Group* groups) {
        const float factor = load_half(block + 208);
        for (int part = 0; part < 2; ++part) {
            const uint8_t *low = block + 64 * part, *high = block + 128 + 32 * part;
            for (int g = 0; g < 4; ++g) {
                int8_t number[32];
                for (int i = 0; i < 32; ++i) {
                    const int low_bits = low[g % 2 * 32 + i] >> g / 2 * 4 & 15;
                    number[i] = static_cast<int8_t>((low_bits | (high[i] >> 2 * g & 3) << 4) - 32);
                }
                const uint8_t* scales = block + 192 + 8 * part + 2 * g;
                share_scale(factor * static_cast<int8_t>(scales[0]), factor * static_cast<int8_t>(scales[1]), number,
                            groups[4 * part + g]);
            }
        }
    }

private:
    static void share_scale(float first, float second, const int8_t* number, Group& group) {
        const float larger = __builtin_fabsf(first) >= __builtin_fabsf(second) ? first : second;
        group.scale = to_half(larger / 4);
        const float shared = to_float(group.scale);
        round(number, shared == 0 ? 0 : first / shared, group.q);
        round(number + 16, shared == 0 ? 0 : second / shared, group.q + 16);
    }

    static void round(const int8_t* number, float ratio, uint8_t* q) {
        constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves an integer in the low bits
        for (int i = 0; i < 16; ++i) {
            float scaled = static_cast<float>(number[i]) * ratio;
            scaled = scaled < -128 ? -128 : scaled > 127 ? 127 : scaled;
            const float sum = scaled + kRounder;
            uint32_t bits;
            std::memcpy(&bits, &sum, sizeof bits);
            q[i] = static_cast<uint8_t>(bits + 128);
        }
    }
};

}  // namespace
