/* One training round of model.c beside it, from files to a file: for machines that are emulated and have no Python. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "model.c"

#ifdef __x86_64__
#include <x86intrin.h>
#define ASK_FOR_TILES() syscall(158 /* arch_prctl */, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* XTILEDATA */)
#define TICKS() __rdtsc()
#else
#define ASK_FOR_TILES()
#define TICKS() 0ull
#endif

static void *whole(const char *name, size_t *bytes)
{
    FILE *file = fopen(name, "rb");
    fseek(file, 0, SEEK_END);
    *bytes = ftell(file);
    rewind(file);
    void *memory = aligned_alloc(64, (*bytes + 127) / 64 * 64);
    if (fread(memory, 1, *bytes, file) != *bytes)
        exit(1);
    fclose(file);
    return memory;
}

/* Arguments: local steps, samples in a batch, learning rate. Prints how far the CPU's counter has gone meanwhile. */
int main(int count, char **arguments)
{
    if (count != 4)
        return 1;
    size_t bytes, other;
    float *params = whole("params", &bytes), *x = whole("x", &other);
    int64_t *y = whole("y", &other), *indices = whole("indices", &other);
    int64_t steps = atoi(arguments[1]), batch = atoi(arguments[2]);
    double *losses = calloc(steps, sizeof *losses);
    size_t scratch = (scratch_bytes() + 127) / 64 * 64;
    void *memory = memset(aligned_alloc(64, scratch), 0, scratch);
    ASK_FOR_TILES();
    unsigned long long start = TICKS();
    if (train_round(params, x, y, indices, steps, batch, atof(arguments[3]), 1e300, losses, memory) != steps)
        return 1;
    printf("%llu\n", TICKS() - start);
    FILE *file = fopen("out", "wb");
    fwrite(params, 1, bytes, file);
    return fclose(file);
}
