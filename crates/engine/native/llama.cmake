# How this project compiles llama.cpp: for the machine it is built on.
#
# CMake reads this file right after `project()` because CMAKE_PROJECT_INCLUDE names it; the build
# script of llama-cpp-sys-2 passes every CMAKE_* variable of its environment on. That costs no
# RUSTFLAGS, so nothing but llama.cpp is compiled again when a line here changes.
# Cargo does not see such a change: raise GGML_VIVARIUM_RECIPE beside it (the build script watches GGML_*).
if (NOT PROJECT_NAME STREQUAL "llama.cpp")
    return()
endif()

# The build script turns GGML_NATIVE off unless RUSTFLAGS say `target-cpu=native`. A plain variable
# hides that cache entry (CMP0077). Between the baseline and this machine lie factors of two to four.
set(GGML_NATIVE ON)
# Unless this machine is not the one that it is for: then for the least of that kind.
if (CMAKE_CROSSCOMPILING)
    set(GGML_NATIVE OFF)
endif()
# Or for a class of processors (infer/src/engines.rs has their names), whatever machine it is built on.
if (GGML_VIVARIUM_CPU)
    set(GGML_NATIVE OFF)
    foreach (feature SSE42 AVX AVX2 BMI2 FMA F16C AVX512 AVX512_VBMI AVX512_VNNI AMX_TILE AMX_INT8)
        set(GGML_${feature} OFF)
    endforeach()
    if (GGML_VIVARIUM_CPU MATCHES "^x86-64-v[34]")
        foreach (feature SSE42 AVX AVX2 BMI2 FMA F16C)
            set(GGML_${feature} ON)
        endforeach()
    endif()
    if (GGML_VIVARIUM_CPU STREQUAL "x86-64-v4-amx")
        foreach (feature AVX512 AVX512_VBMI AVX512_VNNI AMX_TILE AMX_INT8)
            set(GGML_${feature} ON)
        endforeach()
    elseif (NOT GGML_VIVARIUM_CPU MATCHES "^x86-64(-v3)?$")
        message(FATAL_ERROR "GGML_VIVARIUM_CPU=${GGML_VIVARIUM_CPU}: no such class of processors")
    endif()
endif()
# On arm64 it also pins armv8-a, which would win over native.
if (GGML_NATIVE)
    unset(GGML_CPU_ARM_ARCH CACHE)
endif()

# llamafile's matrices take over from two rows on, and round otherwise than one row alone. Of the shipped models they only
# do the attention. Without them a token has the same bits alone, beside others of its answer, and as part of a prompt
# (crates/engine/src/decode/tests.rs).
set(GGML_LLAMAFILE OFF)

# llama-cpp-2 always asks for the library behind llama.cpp's own command line (its `common`): 60 % of the compile
# time for nothing that is called here.
set(LLAMA_BUILD_COMMON OFF)

# The engine has flash attention off, so that an answer's bits do not hang on what runs beside it, and CUDA's kernels for
# it are most of what there is to compile.
set(GGML_CUDA_FA OFF)

add_compile_options(
    "$<$<COMPILE_LANGUAGE:CXX>:-include${CMAKE_CURRENT_LIST_DIR}/amx_gcc12.h>"
    "$<$<COMPILE_LANGUAGE:C>:-include${CMAKE_CURRENT_LIST_DIR}/yielding_barrier.h>"
)
