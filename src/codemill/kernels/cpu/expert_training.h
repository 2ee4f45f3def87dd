// The experts of a mixture in training: forward, and backward by hand. See kernels/expert_training.py.
//
// Letters: N tokens, P pairs of a token and an expert, D model, E experts, F ffn, k experts of a token.
#pragma once

#include <cstddef>
#include <cstdint>

namespace codemill {

// Numbers between the products are bf16 for the kernels with AMX, whose D and F are multiples of 32, else fp32.
struct ExpertPass {
    const void* x;           // [N, D], fp32 or bf16; bf16 with AMX
    const void* gate_up;     // [E, 2F, D], fp32 or bf16
    const void* down;        // [E, D, F], the same
    const int64_t* tokens;   // [P], expert after expert
    const int64_t* starts;   // [E + 1]: where the pairs of each begin
    void* hidden;            // [P, 2F]: gate and up; forward writes it, backward reads it
    void* rows;              // [P, D]: what each expert yields; in backward its gradient of x, or null
    // The rest is for backward.
    const void* gradient;      // [N, D], fp32 or bf16; bf16 with AMX
    const float* scales;       // fp32 [P]: of what each expert yields
    float* scale_gradient;     // fp32 [P]
    void* gate_up_gradient;    // as the weights, or null; of experts without tokens it is left alone
    void* down_gradient;
    int32_t num_experts, hidden_size, ffn, weights_are_bf16, x_is_bf16, gradient_is_bf16;
};

struct ExpertKernels {
    size_t (*scratch_floats)(const ExpertPass& pass, int expert);
    void (*forward)(const ExpertPass& pass, int expert, float* scratch);
    void (*backward)(const ExpertPass& pass, int expert, float* scratch);
    // out fp32 [D] = the sum over k of scales[i] * rows[places[i]]; without scales if they are null.
    void (*combine)(const void* rows, const int64_t* places, const float* scales, int count, int size, float* out);
};

// Each is null where the processor lacks the instructions. All but the first compute in fp32.
const ExpertKernels* expert_kernels_amx();
const ExpertKernels* expert_kernels_avx512();
const ExpertKernels* expert_kernels_avx2();
const ExpertKernels* expert_kernels_plain();

}  // namespace codemill
