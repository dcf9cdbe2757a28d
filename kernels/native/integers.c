// "12,34,-56" to int64, for lists of addresses that SQL gives back as one text.
#include "kernels.h"

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
