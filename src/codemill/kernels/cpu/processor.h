// Instructions of this processor that not every compiler knows by name.
#pragma once

#include <cstddef>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace codemill {
namespace {

#if defined(__x86_64__)

// The registers that `cpuid` fills; zeros where the processor does not know the leaf.
struct CpuId {
    CpuId(unsigned leaf, unsigned subleaf) {
        if (!__get_cpuid_count(leaf, subleaf, &a, &b, &c, &d)) a = b = c = d = 0;
    }
    unsigned a, b, c, d;
};

[[maybe_unused]] bool has_f16c() { return CpuId(1, 0).c >> 29 & 1; }
[[maybe_unused]] bool has_avx_vnni() { return CpuId(7, 1).a >> 4 & 1; }
[[maybe_unused]] bool has_amx_tiles() { return CpuId(7, 0).d >> 24 & 1; }
[[maybe_unused]] bool has_amx_int8() { return CpuId(7, 0).d >> 25 & 1; }
[[maybe_unused]] bool has_amx_bf16() { return CpuId(7, 0).d >> 22 & 1; }

#elif defined(__aarch64__)

#if defined(__linux__)
constexpr unsigned long kDotProducts = 1ul << 20;         // of AT_HWCAP, in Linux's asm/hwcap.h
constexpr unsigned long kBfloat16DotProducts = 1ul << 14;  // of AT_HWCAP2
#elif defined(__APPLE__)
bool has_feature(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

[[maybe_unused]] bool has_dot_products() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#elif defined(__APPLE__)
    return has_feature("hw.optional.arm.FEAT_DotProd");
#else
    return false;
#endif
}

[[maybe_unused]] bool has_bfloat16_dot_products() {
#if defined(__linux__)
    return (getauxval(AT_HWCAP2) & kBfloat16DotProducts) != 0;
#elif defined(__APPLE__)
    return has_feature("hw.optional.arm.FEAT_BF16");
#else
    return false;
#endif
}

#endif

}  // namespace
}  // namespace codemill
