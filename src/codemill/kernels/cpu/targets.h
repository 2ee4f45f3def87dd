// BEGIN_TARGET("avx2,fma") ... END_TARGET: functions between the two may use these instructions. Library headers are to
// be included before, so that their functions are compiled for every processor.
#pragma once

// Whether a part of the code may use extensions of ARMv8 that the rest may not: Clang before 16 has their intrinsics only
// where all code may.
#if defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#define HAS_ARM_EXTENSIONS 1
#else
#define HAS_ARM_EXTENSIONS 0
#endif

#define CODEMILL_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define BEGIN_TARGET(instructions) \
    CODEMILL_PRAGMA(clang attribute push(__attribute__((target(instructions))), apply_to = function))
#define END_TARGET CODEMILL_PRAGMA(clang attribute pop)
#else
#define BEGIN_TARGET(instructions) CODEMILL_PRAGMA(GCC push_options) CODEMILL_PRAGMA(GCC target(instructions))
#define END_TARGET CODEMILL_PRAGMA(GCC pop_options)
#endif
