// What the two sides of an emulated library share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace emulated {

constexpr uintptr_t kAddress = uintptr_t{1} << 44;  // free in both processes
constexpr size_t kBytes = size_t{1} << 36;          // only what is used takes memory

union Slot {
    void* pointer;
    size_t size;
    int integer;
    float number;
};

// Lies at kAddress.
struct Call {
    int function;
    int status;
    Slot slots[32];
};

}  // namespace emulated

// Generated: calls the entry point with that number.
int codemill_dispatch(int function, const emulated::Slot* slots);
// Has the guest do so.
int codemill_forward(int function, const emulated::Slot* slots, int num_slots);
