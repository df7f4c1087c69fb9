/*
 * What every fuzz target defines: it must not crash, read beyond DATA or fail an assertion,
 * whatever the bytes are. libFuzzer calls it with inputs of its own making, replay_main.c with
 * files.
 */
#ifndef FUZZ_FUZZ_H
#define FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
