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
inline void add_parts(const Floats<LANES> (&parts)[kParts][VECTORS], Floats<LANES> (&sums)[VECTORS]) {
    for (int i = 0; i < VECTORS; ++i) {
        sums[i] = parts[0][i];
        for (int part = 1; part < kParts; ++part) sums[i] += parts[part][i];
    }
}

// VECTORS vectors of columns; the last one has `last` columns if PARTIAL.
template <int LANES, int VECTORS, bool PARTIAL>
struct Step {
    using Vector = Floats<LANES>;
    using Vectors = Vector[VECTORS];

    const int key_dim, last;

    // What the state holds for the key.
    void predict(Columns state, const float* key, Vectors& predicted) const {
        Vector sums[kParts][VECTORS] = {};
        for_each_row([&](int k, int part) {
            const float* row = state.data + k * state.stride;
            for (int i = 0; i < VECTORS; ++i) sums[part][i] += load_at(row, i) * key[k];
        });
        add_parts<LANES, VECTORS>(sums, predicted);
    }

    // The columns of `state` after the token go to `stepped`, which may be the same; its output goes to `out`. On the
    // way `predicted`, which the state held for the token's key, becomes what `stepped` holds for the next one's: the
    // state is read and written once for each token.
    void run(Columns state, Columns stepped, const Token& token, const float* next_key, Vectors& predicted,
             float* out) const {
        Vectors writes;
        for (int i = 0; i < VECTORS; ++i) {
            writes[i] = (load<LANES>(token.value + i * LANES) - predicted[i] * token.decay) * token.beta;
        }
        const float decay = token.decay;
        Vector outputs[kParts][VECTORS] = {}, nexts[kParts][VECTORS] = {};
        for_each_row([&](int k, int part) {
            const float* from = state.data + k * state.stride;
            float* to = stepped.data + k * stepped.stride;
            // Read at once: for all the compiler knows, what is stored below might change them.
            const float key = token.key[k], query = token.query[k], next = next_key[k];
            for (int i = 0; i < VECTORS; ++i) {
                const Vector x = load_at(from, i) * decay + writes[i] * key;
                store_at(to, i, x);
                outputs[part][i] += x * query;
                nexts[part][i] += x * next;
            }
        });
        Vectors output;
        add_parts<LANES, VECTORS>(outputs, output);
        add_parts<LANES, VECTORS>(nexts, predicted);
        for (int i = 0; i < VECTORS; ++i) store_at(out, i, output[i]);
    }

private:
    template <class Visit>
    void for_each_row(Visit visit) const {
        int k = 0;
        for (; k + kParts <= key_dim; k += kParts) {
            for (int part = 0; part < kParts; ++part) visit(k + part, part);
        }
        for (int part = 0; k < key_dim; ++k, ++part) visit(k, part);
    }

    Vector load_at(const float* row, int i) const {
        return PARTIAL && i == VECTORS - 1 ? load_some<LANES>(row + i * LANES, last) : load<LANES>(row + i * LANES);
    }

    void store_at(float* row, int i, Vector x) const {
        if (PARTIAL && i == VECTORS - 1) return store_some<LANES>(row + i * LANES, x, last);
        store<LANES>(row + i * LANES, x);
    }
};

}  // namespace
