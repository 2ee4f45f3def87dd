// One segment for one key head and its value heads: the body of every variant. It calls no library code: see vectors.h.
#pragma once

#include "gated_delta.h"
#include "gated_delta_scratch.h"
#include "gated_delta_step.h"
#include "vectors.h"

namespace {

using codemill::DeltaCopy;
using codemill::DeltaScratch;
using codemill::DeltaSegment;
using codemill::GatedDelta;
using codemill::kDeltaColumns;
using codemill::kDeltaTokens;

inline int smaller(int a, int b) { return a < b ? a : b; }

template <int LANES>
class Head {
    using Vector = Floats<LANES>;
    static constexpr int kVectors = kRegisters<LANES> / 8;
    static_assert(kVectors * LANES <= kDeltaColumns && kDeltaTokens % LANES == 0);

public:
    Head(const GatedDelta& call, const DeltaSegment& segment, int head, float* scratch)
        : call_(call),
          segment_(segment),
          head_(head),
          repeats_(call.repeats()),
          key_dim_(call.key_dim),
          value_dim_(call.value_dim),
          num_channels_(call.head_channels()),
          num_past_(call.conv_width - 1),
          place_(call),
          scratch_(scratch) {}

    void run() {
        const int num_certain = segment_.num_new - segment_.num_uncertain;
        const DeltaCopy *copy = call_.copies + segment_.first_copy, *end = copy + segment_.num_copies;
        load_taps();
        load_window();
        for (int token = 0; token < segment_.num_new;) {
            int stop = smaller(token + kDeltaTokens, segment_.num_new);
            if (token < num_certain) stop = smaller(stop, num_certain);
            if (copy != end) stop = smaller(stop, copy->num_tokens);
            advance(token, stop - token, token - num_certain);
            token = stop;
            if (token == num_certain) store_window(segment_.state_slot);
            for (; copy != end && copy->num_tokens <= token; ++copy) copy_state(copy->slot);
        }
    }

private:
    // The three runs of channels that belong to the head lie one after the other in `qkvz` and in scratch memory, and
    // apart in the convolution's weight and window. visit(channel, own channel, count) for each.
    template <class Visit>
    void for_each_run(Visit visit) const {
        const size_t all_keys = static_cast<size_t>(call_.num_key_heads) * key_dim_;
        const int num_values = repeats_ * value_dim_;
        visit(static_cast<size_t>(head_) * key_dim_, 0, key_dim_);
        visit(all_keys + static_cast<size_t>(head_) * key_dim_, key_dim_, key_dim_);
        visit(2 * all_keys + static_cast<size_t>(head_) * num_values, 2 * key_dim_, num_values);
    }

    float* taps(int tap) const { return scratch_ + place_.taps + tap * place_.stride; }
    float* history(int token) const { return scratch_ + place_.history + (num_past_ + token) * place_.stride; }
    float* mixed(int token) const { return scratch_ + place_.mixed + token * place_.stride; }
    float* decay(int repeat) const { return scratch_ + place_.decay + repeat * kDeltaTokens; }
    float* beta(int repeat) const { return scratch_ + place_.beta + repeat * kDeltaTokens; }
    float* output(int token) const { return scratch_ + place_.outputs + token * place_.out_stride; }
    float* drafted(int repeat) const {
        return scratch_ + place_.drafted + static_cast<size_t>(repeat) * key_dim_ * value_dim_;
    }
    int value_head(int repeat) const { return head_ * repeats_ + repeat; }
    float* state(int slot, int repeat) const {
        const size_t place = static_cast<size_t>(slot) * call_.num_value_heads + value_head(repeat);
        return call_.recurrent + place * key_dim_ * value_dim_;
    }
    size_t window(int slot, int past) const {
        return (static_cast<size_t>(slot) * num_past_ + past) * call_.channels();
    }
    const float* input(int token) const {  // query, key, values and gates of the head
        const size_t size = num_channels_ + static_cast<size_t>(repeats_) * value_dim_;
        return call_.qkvz + (static_cast<size_t>(segment_.start + token) * call_.num_key_heads + head_) * size;
    }

    void load_taps() {
        for (int tap = 0; tap <= num_past_; ++tap) {
            for (size_t i = num_channels_; i < place_.stride; ++i) taps(tap)[i] = 0;
        }
        for_each_run([this](size_t channel, int own, int count) {
            const size_t first = channel * call_.conv_width;
            if (call_.weight_is_bf16) {
                load_taps(static_cast<const bfloat16*>(call_.conv_weight) + first, own, count);
            } else {
                load_taps(static_cast<const float*>(call_.conv_weight) + first, own, count);
            }
        });
    }

    // [count, W] -> the other way round. With a known width compilers make vectors of it.
    template <class Element>
    void load_taps(const Element* from, int own, int count) {
        if (call_.conv_width == 4) {
            float *a = taps(0) + own, *b = taps(1) + own, *c = taps(2) + own, *d = taps(3) + own;
            for (int i = 0; i < count; ++i) {
                a[i] = to_float(from[4 * i]);
                b[i] = to_float(from[4 * i + 1]);
                c[i] = to_float(from[4 * i + 2]);
                d[i] = to_float(from[4 * i + 3]);
            }
            return;
        }
        for (int tap = 0; tap <= num_past_; ++tap) {
            for (int i = 0; i < count; ++i) taps(tap)[own + i] = to_float(from[i * (num_past_ + 1) + tap]);
        }
    }

    void load_window() {
        for (int past = 0; past < num_past_; ++past) {
            float* to = history(past - num_past_);
            for_each_run([&](size_t channel, int own, int count) {
                const size_t first = window(segment_.state_slot, past) + channel;
                if (call_.windows_are_bf16) {
                    const bfloat16* from = static_cast<const bfloat16*>(call_.windows) + first;
                    for (int i = 0; i < count; ++i) to[own + i] = to_float(from[i]);
                } else {
                    const float* from = static_cast<const float*>(call_.windows) + first;
                    for (int i = 0; i < count; ++i) to[own + i] = from[i];
                }
            });
            for (size_t i = num_channels_; i < place_.stride; ++i) to[i] = 0;
        }
    }

    void store_window(int slot) const {
        for (int past = 0; past < num_past_; ++past) {
            const float* from = history(past - num_past_);
            for_each_run([&](size_t channel, int own, int count) {
                const size_t first = window(slot, past) + channel;
                if (call_.windows_are_bf16) {
                    bfloat16* to = static_cast<bfloat16*>(call_.windows) + first;
                    for (int i = 0; i < count; ++i) to[i] = upper_half(from[own + i]);
                } else {
                    float* to = static_cast<float*>(call_.windows) + first;
                    for (int i = 0; i < count; ++i) to[i] = from[own + i];
                }
            });
        }
    }

    void copy_state(int slot) const {
        if (slot == segment_.state_slot) return;
        store_window(slot);
        const size_t size = static_cast<size_t>(repeats_) * key_dim_ * value_dim_;
        __builtin_memcpy(state(slot, 0), state(segment_.state_slot, 0), size * sizeof(float));
    }

    // `count` tokens from `first` on, of which `num_drafts` uncertain ones have been before; negative if none is.
    void advance(int first, int count, int num_drafts) {
        for (int token = 0; token < count; ++token) load_input(input(first + token), history(token));
        convolve(count);
        for (int token = 0; token < count; ++token) make_units(mixed(token));
        for (int repeat = 0; repeat < repeats_; ++repeat) {
            make_gates(first, count, repeat);
            float* const own = state(segment_.state_slot, repeat);
            recur(num_drafts <= 0 ? own : drafted(repeat), num_drafts < 0 ? own : drafted(repeat), count, repeat);
            if (call_.out) {
                for (int token = 0; token < count; ++token) finish(first + token, output(token), repeat);
            }
        }
        for (int past = 0; past < num_past_; ++past) {
            const float* from = history(count + past - num_past_);
            __builtin_memmove(history(past - num_past_), from, place_.stride * sizeof(float));
        }
    }

    // Rounded as the window keeps them: how a token is convolved must not depend on whether it has been there.
    void load_input(const float* from, float* to) const {
        int i = 0;
        for (; i + LANES <= num_channels_; i += LANES) store<LANES>(to + i, as_kept(load<LANES>(from + i)));
        if (i < num_channels_) store<LANES>(to + i, as_kept(load_some<LANES>(from + i, num_channels_ - i)));
    }

    Vector as_kept(Vector x) const { return call_.windows_are_bf16 ? (Vector)rounded_to_bfloat16<LANES>(x) : x; }

    // history -> mixed: the convolution and SiLU.
    void convolve(int count) {
        if (call_.conv_width == 4) return convolve_by<4>(count);
        for (int token = 0; token < count; ++token) {
            for (size_t i = 0; i < place_.stride; i += LANES) {
                Vector sum = {};
                for (int tap = 0; tap <= num_past_; ++tap) {
                    sum += load<LANES>(history(token + tap - num_past_) + i) * load<LANES>(taps(tap) + i);
                }
                store<LANES>(mixed(token) + i, sum * sigmoid<LANES>(sum));
            }
        }
    }

    template <int WIDTH>
    void convolve_by(int count) {
        for (size_t i = 0; i < place_.stride; i += LANES) {
            Vector weights[WIDTH], inputs[WIDTH];
            for (int tap = 0; tap < WIDTH; ++tap) weights[tap] = load<LANES>(taps(tap) + i);
            for (int tap = 0; tap + 1 < WIDTH; ++tap) inputs[tap] = load<LANES>(history(tap + 1 - WIDTH) + i);
            for (int token = 0; token < count; ++token) {
                inputs[WIDTH - 1] = load<LANES>(history(token) + i);
                Vector sum = {};
                for (int tap = 0; tap < WIDTH; ++tap) sum += inputs[tap] * weights[tap];
                for (int tap = 0; tap + 1 < WIDTH; ++tap) inputs[tap] = inputs[tap + 1];
                store<LANES>(mixed(token) + i, sum * sigmoid<LANES>(sum));
            }
        }
    }

    // Query and key become unit vectors; the query is scaled for the dot products with the state.
    void make_units(float* row) const {
        const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(key_dim_));
        multiply(row, key_dim_, scale / __builtin_sqrtf(sum_of_squares<LANES>(row, key_dim_) + 1e-6f));
        float* const key = row + key_dim_;
        multiply(key, key_dim_, 1.0f / __builtin_sqrtf(sum_of_squares<LANES>(key, key_dim_) + 1e-6f));
    }

    static void multiply(float* row, int count, float factor) {
        int i = 0;
        for (; i + LANES <= count; i += LANES) store<LANES>(row + i, load<LANES>(row + i) * factor);
        if (i < count) store_some<LANES>(row + i, load_some<LANES>(row + i, count - i) * factor, count - i);
    }

    // decay = exp(-exp(A_log) softplus(a + dt_bias)) and beta = sigmoid(b), for tokens in the lanes of vectors.
    void make_gates(int first, int count, int repeat) {
        const float A_log = call_.A_log[value_head(repeat)], dt_bias = call_.dt_bias[value_head(repeat)];
        const Vector rate = exponential<LANES>(Vector{} + (A_log > 88.0f ? 88.0f : A_log));
        for (int token = 0; token < count; token += LANES) {
            Vector a = {}, b = {};
            for (int lane = 0; lane < smaller(LANES, count - token); ++lane) {
                const size_t row = segment_.start + first + token + lane;
                const float* from = call_.ba + (row * call_.num_key_heads + head_) * 2 * repeats_;
                b[lane] = from[repeat];
                a[lane] = from[repeats_ + repeat];
            }
            store<LANES>(decay(repeat) + token, exponential<LANES>(-rate * softplus<LANES>(a + dt_bias)));
            store<LANES>(beta(repeat) + token, sigmoid<LANES>(b));
        }
    }

    // The tokens over the state `from`, which then goes to `to`; outputs go to scratch memory.
    void recur(float* from, float* to, int count, int repeat) {
        int column = 0;
        for (; column + kVectors * LANES <= value_dim_; column += kVectors * LANES) {
            step<kVectors, false>(from, to, count, repeat, column, LANES);
        }
        for (; column + LANES <= value_dim_; column += LANES) {
            step<1, false>(from, to, count, repeat, column, LANES);
        }
        if (column < value_dim_) step<1, true>(from, to, count, repeat, column, value_dim_ - column);
    }

    template <int VECTORS, bool PARTIAL>
    void step(float* from, float* to, int count, int repeat, int column, int last) {
        const Columns source = {from + column, static_cast<size_t>(value_dim_)};
        const Columns target = {to + column, static_cast<size_t>(value_dim_)};
        const Columns near = {scratch_ + place_.columns, VECTORS * LANES};
        const Step<LANES, VECTORS, PARTIAL> steps = {key_dim_, last};
        Vector predicted[VECTORS];
        steps.predict(source, mixed(0) + key_dim_, predicted);
        for (int i = 0; i < count; ++i) {
            const float *row = mixed(i), *next = mixed(smaller(i + 1, count - 1));
            const Token token = {row, row + key_dim_, row + 2 * key_dim_ + repeat * value_dim_ + column,
                                 decay(repeat)[i], beta(repeat)[i]};
            const Columns state = i == 0 ? source : near, stepped = i == count - 1 ? target : near;
            steps.run(state, stepped, token, next + key_dim_, predicted, output(i) + column);
        }
    }

    // The gated norm of one output -> its place.
    void finish(int token, const float* x, int repeat) const {
        const float* gate = input(token) + num_channels_ + repeat * value_dim_;
        const size_t row = static_cast<size_t>(segment_.start + token) * call_.num_value_heads + value_head(repeat);
        float* const out = call_.out + row * value_dim_;
        const float mean = sum_of_squares<LANES>(x, value_dim_) / static_cast<float>(value_dim_);
        const float factor = 1.0f / __builtin_sqrtf(mean + call_.eps);
        const auto normed = [factor](Vector y, Vector weight, Vector z) {
            return y * factor * weight * (z * sigmoid<LANES>(z));
        };
        int i = 0;
        for (; i + LANES <= value_dim_; i += LANES) {
            const Vector weight = load<LANES>(call_.norm_weight + i), z = load<LANES>(gate + i);
            store<LANES>(out + i, normed(load<LANES>(x + i), weight, z));
        }
        if (const int rest = value_dim_ - i; rest > 0) {
            const Vector weight = load_some<LANES>(call_.norm_weight + i, rest), z = load_some<LANES>(gate + i, rest);
            store_some<LANES>(out + i, normed(load_some<LANES>(x + i, rest), weight, z), rest);
        }
    }

    const GatedDelta& call_;
    const DeltaSegment& segment_;
    const int head_, repeats_, key_dim_, value_dim_;
    const int num_channels_;  // of the head
    const int num_past_;      // inputs in the window
    const DeltaScratch place_;
    float* const scratch_;
};

template <int LANES>
void run_head(const GatedDelta& call, const DeltaSegment& segment, int key_head, float* scratch) {
    Head<LANES>(call, segment, key_head, scratch).run();
}

}  // namespace
