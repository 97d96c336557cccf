/*
 * Machine code for Echelon chips: what a kernel of platform "cpu" includes.
 *
 * A chip callable is a shared object for the machine it runs on (cc -shared -fPIC) with two symbols:
 *
 *     #include "echelon_chip.h"
 *
 *     ECHELON_CHIP_SIGNATURE(ECHELON_IN, ECHELON_SCALAR, ECHELON_OUT);
 *
 *     ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config) {
 *         const float *x = tensors[0].data;
 *         ...
 *         return 0;
 *     }
 *
 * The signature says what each parameter is, and is part of the callable's identity. Tensors come in the order of the parameters
 * that are tensors, scalars in the order of those that are scalars. A task whose arguments do not fit is refused when it is
 * submitted, so an entry may rely on n, m and the directions; shapes and element types are its own to check.
 *
 * The entry is called by one thread of a process of its own, one call at a time. 0 is success; any other number fails the task, with
 * that number and the text of config->message in the error. A crash ends the process: the task fails as lost, others go on.
 * Pointers are valid until the entry returns.
 */
#ifndef ECHELON_CHIP_H
#define ECHELON_CHIP_H

#include <stdint.h>

#ifdef __cplusplus
#define ECHELON_EXTERN extern "C"
#else
#define ECHELON_EXTERN extern
#endif
#define ECHELON_EXPORT __attribute__((visibility("default")))

/* Version of everything below; config->abi at run time. */
#define ECHELON_CHIP_ABI 1u

#define ECHELON_MAX_DIMS 5

/* Directions of parameters. */
enum {
    ECHELON_SCALAR = 0,
    ECHELON_IN = 1,   /* a tensor that is read: tag INPUT. Writing to it is undefined. */
    ECHELON_OUT = 2,  /* a tensor that is written: tag OUTPUT or OUTPUT_EXISTING */
    ECHELON_INOUT = 3 /* a tensor that is read and written: tag INOUT */
};

/* Element types. */
enum {
    ECHELON_FLOAT32 = 0,
    ECHELON_FLOAT16 = 1,
    ECHELON_INT32 = 2,
    ECHELON_INT16 = 3,
    ECHELON_INT8 = 4,
    ECHELON_UINT8 = 5,
    ECHELON_BFLOAT16 = 6,
    ECHELON_INT64 = 7,
    ECHELON_UINT64 = 8,
    ECHELON_UINT16 = 9,
    ECHELON_UINT32 = 10,
    ECHELON_BOOL = 11,
    ECHELON_FLOAT64 = 12
};

/* A contiguous tensor, row-major. */
typedef struct echelon_tensor {
    void *data;      /* not aligned beyond what its place in the caller's memory gives */
    uint64_t nbytes; /* product of the shape times the element's size; may be 0 */
    uint32_t dtype;
    uint32_t ndims;
    uint32_t shape[ECHELON_MAX_DIMS]; /* 0 from ndims on */
    uint32_t direction;
} echelon_tensor;

/* The task's CallConfig, and what the entry may say. */
typedef struct echelon_config {
    uint32_t abi;          /* ECHELON_CHIP_ABI */
    uint32_t message_size; /* bytes at message, the terminator included */
    int64_t device;        /* the device of this process */
    int32_t block_dim;
    int32_t aicpu_thread_num;
    int32_t enable_l2_swimlane;
    int32_t enable_dump_tensor;
    int32_t enable_pmu;
    int32_t enable_dep_gen;
    int32_t enable_scope_stats;
    int32_t reserved;
    const char *output_prefix; /* terminated; never NULL */
    char *message;             /* a terminated text for the error may be put here, UTF-8; empty on entry */
} echelon_config;

/* The code's signature: version 1, the number of parameters, a direction each. */
#define ECHELON_CHIP_SIGNATURE(...)                                                                                    \
    ECHELON_EXTERN const uint32_t echelon_chip_signature[] ECHELON_EXPORT;                                             \
    const uint32_t echelon_chip_signature[] = {                                                                        \
        1u, (uint32_t)(sizeof((const uint32_t[]){__VA_ARGS__}) / sizeof(uint32_t)), __VA_ARGS__}

/* Defines the entry; the arguments name its parameters. */
#define ECHELON_CHIP_ENTRY(tensors, n, scalars, m, config)                                                             \
    ECHELON_EXTERN int32_t echelon_chip_entry(const echelon_tensor *tensors, uint32_t n, const uint64_t *scalars,      \
                                              uint32_t m, const echelon_config *config) ECHELON_EXPORT;                \
    int32_t echelon_chip_entry(const echelon_tensor *tensors __attribute__((unused)), uint32_t n __attribute__((unused)), \
                               const uint64_t *scalars __attribute__((unused)), uint32_t m __attribute__((unused)),    \
                               const echelon_config *config __attribute__((unused)))

#endif
