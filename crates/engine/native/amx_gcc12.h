/* Included before every C++ file of llama.cpp (llama.cmake says how).
 *
 * GCC before 13 describes `_tile_loadconfig` to its optimiser as reading eight bytes, where the
 * instruction reads the whole 64-byte tile configuration. It then drops the stores to the other 56
 * as dead, and the first matrix product on a machine with AMX faults. This says what is really read.
 * Clang and newer GCC are right by themselves. */
#if defined(__cplusplus) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13 && defined(__AMX_TILE__)
#include <immintrin.h>

struct vivarium_tile_config {
    unsigned char bytes[64];
};

static inline void vivarium_load_tile_config(const void *config) {
    __asm__ volatile("ldtilecfg %0" : : "m"(*(const struct vivarium_tile_config *) config));
}

#undef _tile_loadconfig
#define _tile_loadconfig(config) vivarium_load_tile_config(config)
#endif
