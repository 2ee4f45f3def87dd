// For every processor: vectors of sixteen bytes, and fp32 alone.
#include "machine_speed_variant.h"

const codemill::MachineSpeedKernels* codemill::machine_speed_plain() {
    static constexpr MachineSpeedKernels kernels = {
        read_sum<16>,
        [](Operation operation) { return operation == Operation::kFloat32 ? float_loop<16>() : ComputeLoop{}; },
    };
    return &kernels;
}
