// Lists of addresses that SQL gives back: "12,34,-56" to int64, then sorted, taken apart by file, or set as bits.
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

// -1 and `capacity` numbers in `out`, or the position of the byte that is wrong.
DL_EXPORT int64_t dl_parse_integers(const uint8_t *text, int64_t size, int64_t *out, int64_t capacity) {
    int64_t at = 0;
    for (int64_t count = 0;; count++) {
        int negative = at < size && text[at] == '-';
        int64_t begin = at + negative;
        uint64_t number = 0, limit = (uint64_t)INT64_MAX + (uint64_t)negative;
        for (at = begin; at < size && (uint8_t)(text[at] - '0') < 10; at++) {
            uint64_t digit = (uint64_t)(text[at] - '0');
            if (number >= INT64_MAX / 10 && number > (limit - digit) / 10) return at;
            number = 10 * number + digit;
        }
        if (at == begin || count == capacity) return at;
        out[count] = (int64_t)(negative ? 0 - number : number);
        if (at == size) return -1;
        if (text[at++] != ',') return at - 1;
    }
}

// One pass of a radix sort by the 11 bits at `shift`; 0 where all numbers share them, so that nothing was moved.
static int sort_digit(const int64_t *from, int64_t *to, int64_t count, int shift) {
    int64_t starts[2048] = {0};
    for (int64_t i = 0; i < count; i++) starts[(uint64_t)from[i] >> shift & 2047]++;
    if (starts[(uint64_t)from[0] >> shift & 2047] == count) return 0;
    for (int64_t digit = 0, sum = 0; digit < 2048; digit++) {
        int64_t here = starts[digit];
        starts[digit] = sum;
        sum += here;
    }
    for (int64_t i = 0; i < count; i++) to[starts[(uint64_t)from[i] >> shift & 2047]++] = from[i];
    return 1;
}

// Sorts numbers of zero or more in place and leaves out repeats: how many are left, -1 without memory.
DL_EXPORT int64_t dl_sort_unique(int64_t *numbers, int64_t count) {
    int64_t sorted = 1;
    while (sorted < count && numbers[sorted - 1] <= numbers[sorted]) sorted++;
    if (sorted < count) {
        int64_t *other = malloc((size_t)count * 8), *from = numbers, *to = other;
        if (!other) return -1;
        for (int shift = 0; shift < 64; shift += 11) {
            if (!sort_digit(from, to, count, shift)) continue;
            int64_t *swap = from;
            from = to, to = swap;
        }
        if (from != numbers) memcpy(numbers, from, (size_t)count * 8);
        free(other);
    }
    int64_t kept = count > 0;
    for (int64_t i = 1; i < count; i++)
        if (numbers[i] != numbers[i - 1]) numbers[kept++] = numbers[i];
    return kept;
}

DL_EXPORT void dl_subtract(int64_t *numbers, int64_t count, int64_t base) {
    for (int64_t i = 0; i < count; i++) numbers[i] -= base;
}

// Sets (or clears) bit i % 8 of byte i / 8 for each number i: how many bits changed, or -1 - i for a bad numbers[i].
DL_EXPORT int64_t dl_set_bits(const int64_t *numbers, int64_t count, int32_t on, uint8_t *bits, int64_t size) {
    int64_t changed = 0;
    for (int64_t i = 0; i < count; i++) {
        if (numbers[i] < 0 || numbers[i] >= size) return -1 - i;
        uint8_t *byte = bits + (numbers[i] >> 3), mask = (uint8_t)(1 << (numbers[i] & 7));
        changed += !(*byte & mask) == !!on;
        *byte = on ? *byte | mask : *byte & (uint8_t)~mask;
    }
    return changed;
}
