// What the machine can do at most: loops that only read memory, or only compute in registers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace codemill {

enum class Operation : int { kFloat32 = 0, kInt8 = 1, kBfloat16 = 2 };

// How much a loop of `rounds` rounds computes; 0 where the processor lacks the instruction.
struct ComputeLoop {
    size_t operations_per_round = 0;
    // Returns a number that depends on all the work, so that none of it can be left out.
    float (*run)(size_t rounds) = nullptr;
};

struct MachineSpeedKernels {
    // Reads num_bytes, a multiple of kReadBlock, and returns their sum in some order.
    uint32_t (*read)(const void* from, size_t num_bytes);
    ComputeLoop (*loop)(Operation operation);
};

constexpr size_t kReadBlock = 512;

// The variants; null where this build or this processor lacks the instructions.
const MachineSpeedKernels* machine_speed_plain();
const MachineSpeedKernels* machine_speed_avx2();
const MachineSpeedKernels* machine_speed_neon();
const MachineSpeedKernels* machine_speed_avx512();

}  // namespace codemill
