// pread and CRC-32C of a whole batch in one call: the sum is taken while the bytes are in the cache.
#include "kernels.h"
#include <errno.h>
#include <unistd.h>

enum { PIECE = 1 << 18 };  // bytes read before they are summed: stays in a second-level cache
enum { READ = 0, SHORT_FILE = 1, MISMATCH = 2 };

struct batch {
    int32_t level;
    const int32_t *fds;
    const int64_t *offsets, *lengths, *checks, *places;
    uint8_t *out;
    int32_t *status;
};

static int32_t read_item(const struct batch *batch, int64_t item) {
    uint8_t *place = batch->out + batch->places[item];
    int64_t length = batch->lengths[item], done = 0;
    uint32_t crc = 0;
    while (done < length) {
        int64_t wanted = length - done < PIECE ? length - done : PIECE;
        ssize_t got = pread(batch->fds[item], place + done, (size_t)wanted, batch->offsets[item] + done);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -errno;
        if (got == 0) return SHORT_FILE;
        if (batch->checks[item] >= 0) crc = dl_crc32c(batch->level, crc, place + done, got);
        done += got;
    }
    return batch->checks[item] >= 0 && (int64_t)crc != batch->checks[item] ? MISMATCH : READ;
}

static void one_item(void *context, int64_t item) {
    struct batch *batch = context;
    batch->status[item] = read_item(batch, item);
}

// 0, or 1 when an item is negative or does not fit `out`: then nothing was read.
DL_EXPORT int32_t dl_read_batch(int32_t level, int64_t count, const int32_t *fds, const int64_t *offsets,
                                const int64_t *lengths, const int64_t *checks, uint8_t *out, int64_t size,
                                const int64_t *places, int32_t *status, int32_t threads) {
    for (int64_t i = 0; i < count; i++)
        if (offsets[i] < 0 || lengths[i] < 0 || places[i] < 0 || lengths[i] > size || places[i] > size - lengths[i])
            return 1;
    struct batch batch = {level, fds, offsets, lengths, checks, places, out, status};
    dl_parallel(count, threads, one_item, &batch);
    return 0;
}
