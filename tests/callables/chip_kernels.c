/* Kernels of tests/test_chips.py, one a build: -DKERNEL_NAME. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "echelon_chip.h"

#if defined(KERNEL_scale) /* out = x * k, int64 */
ECHELON_CHIP_SIGNATURE(ECHELON_IN, ECHELON_SCALAR, ECHELON_OUT);
ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) {
    const int64_t *x = tensors[0].data;
    int64_t *out = tensors[1].data;
    if (config->abi != ECHELON_CHIP_ABI || n != 2 || m != 1 || tensors[1].direction != ECHELON_OUT) return 90;
    for (uint64_t i = 0; i < tensors[0].nbytes / 8; i++) out[i] = x[i] * (int64_t)scalars[0];
    return 0;
}

#elif defined(KERNEL_report) /* what an entry is told, as int64: device, shape, dtype, config */
ECHELON_CHIP_SIGNATURE(ECHELON_SCALAR, ECHELON_OUT, ECHELON_SCALAR);
ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) {
    int64_t *out = tensors[0].data;
    int64_t told[] = {config->device,
                      tensors[0].ndims,
                      tensors[0].shape[0],
                      tensors[0].shape[1],
                      tensors[0].shape[2],
                      tensors[0].dtype,
                      config->block_dim,
                      config->aicpu_thread_num,
                      (int64_t)strlen(config->output_prefix),
                      (int64_t)scalars[0],
                      (int64_t)scalars[1],
                      config->message[0]};
    memcpy(out, told, sizeof told);
    return 0;
}

#elif defined(KERNEL_fail) /* returns scalar 0 and says so */
ECHELON_CHIP_SIGNATURE(ECHELON_SCALAR);
ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) {
    snprintf(config->message, config->message_size, "table %d is empty, schön", (int)scalars[0]);
    return (int32_t)scalars[0];
}

#elif defined(KERNEL_crash) /* scalar 0: 0 well, 1 SIGSEGV, 2 abort, 3 exit, 4 for ever */
ECHELON_CHIP_SIGNATURE(ECHELON_SCALAR, ECHELON_INOUT);
ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) {
    volatile int64_t *out = tensors[0].data;
    if (scalars[0] == 1) *(volatile int *)8 = 1;
    if (scalars[0] == 2) abort();
    if (scalars[0] == 3) exit(7);
    if (scalars[0] == 4) {
        signal(SIGTERM, SIG_IGN);
        *out = 1;
        for (;;) ++out[1];
    }
    *out += 1;
    return 0;
}

#elif defined(KERNEL_large) /* more machine code than one control carries */
#ifndef LARGE_BYTES
#define LARGE_BYTES (17 << 20)
#endif
ECHELON_CHIP_SIGNATURE(ECHELON_SCALAR, ECHELON_OUT);
static const unsigned char ballast[LARGE_BYTES] = {1, 2, 3};
ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) {
    *(int64_t *)tensors[0].data = ballast[scalars[0]];
    return 0;
}

#elif defined(KERNEL_noentry)
ECHELON_CHIP_SIGNATURE(ECHELON_SCALAR);

#elif defined(KERNEL_nosignature)
ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) { return 0; }

#elif defined(KERNEL_badsignature)
ECHELON_EXTERN const uint32_t echelon_chip_signature[] ECHELON_EXPORT;
const uint32_t echelon_chip_signature[] = {1, 2, 9, 9};
ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) { return 0; }

#elif defined(KERNEL_unresolved) /* loads only where the symbol is */
extern int nowhere_to_be_found(void);
ECHELON_CHIP_SIGNATURE(ECHELON_SCALAR);
ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) { return nowhere_to_be_found(); }

#else
#error name a kernel
#endif
