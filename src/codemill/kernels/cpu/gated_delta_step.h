// One token of the gated delta rule for some columns of a state [K, V]. Columns do not know of each other.
#pragma once

#include "vectors.h"

namespace {

// Some columns of a state; row k lies at data + k * stride.
struct Columns {
    float* data;
    size_t stride;
};

struct Token {
    const float* query;  // [K]
    const float* key;    // [K]
    const float* value;  // the columns' part of [V]; a vector may be read beyond its end
    float decay;
    float beta;
};

// Sums over k are kept in so many parts, k % parts, to keep the multipliers busy.
constexpr int kParts = 2;

template <int LANES, int VECTORS>
inline void add_parts(Floats<LANES> (&sums)[kParts][VECTORS]) {
    for (int part = 1; part < kParts; ++part) {
        for (int i = 0; i < VECTORS; ++i) sums[0][i] += sums[part][i];
    }
}

// The columns of `state`, stepped, go to `stepped`, which may be the same; the token's output goes to `out`. The last
// vector has `last` columns if PARTIAL.
template <int LANES, int VECTORS, bool PARTIAL>
struct Step {
    using Vector = Floats<LANES>;

    static Vector load_at(const float* row, int i, int last) {
        return PARTIAL && i == VECTORS - 1 ? load_some<LANES>(row + i * LANES, last) : load<LANES>(row + i * LANES);
    }

    static void store_at(float* row, int i, int last, Vector x) {
        if (PARTIAL && i == VECTORS - 1) return store_some<LANES>(row + i * LANES, x, last);
        store<LANES>(row + i * LANES, x);
    }

    static void run(Columns state, Columns stepped, const Token& token, float* out, int key_dim, int last) {
        Vector writes[VECTORS];
        predict(state, token, key_dim, last, writes);
        for (int i = 0; i < VECTORS; ++i) {
            const Vector value = load<LANES>(token.value + i * LANES);
            writes[i] = (value - writes[i] * token.decay) * token.beta;
        }
        write(state, stepped, token, key_dim, last, writes, out);
    }

    // What the state holds for the key, before it decays.
    static void predict(Columns state, const Token& token, int key_dim, int last, Vector (&predicted)[VECTORS]) {
        Vector sums[kParts][VECTORS] = {};
        const auto add = [&](int k, int part) {
            const float* row = state.data + k * state.stride;
            for (int i = 0; i < VECTORS; ++i) sums[part][i] += load_at(row, i, last) * token.key[k];
        };
        int k = 0;
        for (; k + kParts <= key_dim; k += kParts) {
            for (int part = 0; part < kParts; ++part) add(k + part, part);
        }
        for (int part = 0; k < key_dim; ++k, ++part) add(k, part);
        add_parts<LANES, VECTORS>(sums);
        for (int i = 0; i < VECTORS; ++i) predicted[i] = sums[0][i];
    }

    static void write(
        Columns state, Columns stepped, const Token& token, int key_dim, int last, const Vector (&writes)[VECTORS],
        float* out) {
        Vector sums[kParts][VECTORS] = {};
        const auto add = [&](int k, int part) {
            const float* from = state.data + k * state.stride;
            float* to = stepped.data + k * stepped.stride;
            for (int i = 0; i < VECTORS; ++i) {
                const Vector x = load_at(from, i, last) * token.decay + writes[i] * token.key[k];
                store_at(to, i, last, x);
                sums[part][i] += x * token.query[k];
            }
        };
        int k = 0;
        for (; k + kParts <= key_dim; k += kParts) {
            for (int part = 0; part < kParts; ++part) add(k + part, part);
        }
        for (int part = 0; k < key_dim; ++k, ++part) add(k, part);
        add_parts<LANES, VECTORS>(sums);
        for (int i = 0; i < VECTORS; ++i) store_at(out, i, last, sums[0][i]);
    }
};

}  // namespace
