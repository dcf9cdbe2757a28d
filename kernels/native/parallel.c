// The choice of instruction set, and a parallel loop whose threads live for one call: nothing to inherit over a fork.
#include "kernels.h"
#include <pthread.h>
#ifdef DL_X86
#include <cpuid.h>
#endif

enum { MAX_THREADS = 64 };

struct loop {
    int64_t next, items;
    dl_task task;
    void *context;
};

static void *work(void *argument) {
    struct loop *loop = argument;
    for (;;) {
        int64_t item = __atomic_fetch_add(&loop->next, 1, __ATOMIC_RELAXED);
        if (item >= loop->items) return NULL;
        loop->task(loop->context, item);
    }
}

void dl_parallel(int64_t items, int32_t threads, dl_task task, void *context) {
    struct loop loop = {0, items, task, context};
    pthread_t others[MAX_THREADS];
    int started = 0;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    while (started + 1 < threads && started + 1 < items) {
        if (pthread_create(&others[started], NULL, work, &loop)) break;  // fewer threads do the same work
        started++;
    }
    work(&loop);
    while (started) pthread_join(others[--started], NULL);
}

DL_EXPORT int32_t dl_abi(void) { return DL_ABI; }

DL_EXPORT int32_t dl_level(void) {
#ifdef DL_X86
    unsigned a, b, c = 0, d;
    __builtin_cpu_init();
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C) || !(c & bit_PCLMUL)) return DL_PORTABLE;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("sse4.2"))
        return DL_PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("vpclmulqdq"))
        return DL_AVX512;
    return DL_AVX2;
#else
    return DL_PORTABLE;
#endif
}
