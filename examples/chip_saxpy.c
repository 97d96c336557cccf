/*
 * A chip callable: y += a * x, for float32. Built by examples/chips.py with
 *
 *     cc -shared -fPIC -O2 -I "$(python -c 'import echelon; print(echelon.include_dir())')" -o chip_saxpy.so chip_saxpy.c
 */
#include <stdio.h>
#include <string.h>

#include "echelon_chip.h"

/* a, as the bits of a float64; x; y */
ECHELON_CHIP_SIGNATURE(ECHELON_SCALAR, ECHELON_IN, ECHELON_INOUT);

ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) {
    const echelon_tensor *x = &tensors[0], *y = &tensors[1];
    if (x->dtype != ECHELON_FLOAT32 || y->dtype != ECHELON_FLOAT32 || x->nbytes != y->nbytes) {
        snprintf(config->message, config->message_size, "x and y must be float32 of one size");
        return 1;
    }
    double a;
    memcpy(&a, &scalars[0], sizeof a);
    const float *from = x->data;
    float *to = y->data;
    for (uint64_t i = 0; i < y->nbytes / sizeof *to; i++) to[i] += (float)a * from[i];
    return 0;
}
