// Sizes and modes of JPEG and PNG files by a walk over their segments. Only what is plainly whole is answered: a file
// with anything rare or wrong in it is left to codecs/headers.py and Pillow, which know how to say what it is.
#include "kernels.h"
#include <string.h>

enum { JPEG = 0, PNG = 1 };
enum { MAX_PIXELS = 178956970 };      // codecs/info.py holds the same number
enum { MAX_TEXT = 1 << 20 };          // bytes of a PNG's plain texts that no reader's limit comes near
enum { BIT = 7 };                     // PNG's mode "1"
enum { SIXTEEN = 8 };                 // added to a PNG's colour type

static uint32_t be32(const uint8_t *p) { return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3]; }

static int64_t facts(int64_t format, int64_t mode, int64_t orientation, int64_t width, int64_t height) {
    if (width < 1 || height < 1 || width > UINT16_MAX || height > UINT16_MAX || width * height > MAX_PIXELS) return -1;
    return format << 48 | mode << 40 | orientation << 32 | height << 16 | width;
}

static uint32_t word(const uint8_t *p, int bytes, int little) {
    uint32_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint32_t)p[i] << 8 * (little ? i : bytes - 1 - i);
    return value;
}

// As codecs/headers.py: 1 where there is none, or an impossible one.
static int orientation_of(const uint8_t *tiff, int64_t size) {
    int little = size >= 10 && !memcmp(tiff, "II*\0", 4);
    if (size < 10 || (!little && memcmp(tiff, "MM\0*", 4))) return 1;
    int64_t start = word(tiff + 4, 4, little);
    if (start + 2 > size) return 1;
    int64_t count = word(tiff + start, 2, little), room = (size - start - 2) / 12;
    for (int64_t i = 0; i < (count < room ? count : room); i++) {
        const uint8_t *entry = tiff + start + 2 + 12 * i;
        if (word(entry, 2, little) != 0x0112) continue;
        uint32_t value = word(entry + 8, 2, little);
        return value >= 1 && value <= 8 ? (int)value : 1;
    }
    return 1;
}

static int is_frame(int marker) { return (marker >= 0xC0 && marker <= 0xC3) || marker == 0xC9 || marker == 0xCA; }

static int is_segment(int marker) {
    return marker == 0xC4 || marker == 0xCC || (marker >= 0xDB && marker <= 0xDD) || (marker >= 0xE0 && marker <= 0xEF) ||
           marker == 0xFE;
}

// Where the end-of-image marker lies, the last one in the file; -1 where there is none behind `start`.
static int64_t end_of_image(const uint8_t *data, int64_t size, int64_t start) {
    for (int64_t at = size - 2; at >= start; at--)
        if (data[at] == 0xFF && data[at + 1] == 0xD9) return at;
    return -1;
}

static int64_t jpeg(const uint8_t *data, int64_t size) {
    int64_t at = 2, length, width = 0, height = 0;
    int components = 0, process = 0, orientation = 1;
    for (;;) {
        if (at + 4 > size || data[at] != 0xFF) return -1;
        int marker = data[at + 1];
        if (marker == 0xFF) {
            at++;
            continue;
        }
        length = data[at + 2] << 8 | data[at + 3];
        if (length < 2 || at + 2 + length > size) return -1;
        if (marker == 0xDA) break;
        if (marker == 0xE1 && length >= 8 && !memcmp(data + at + 4, "Exif\0", 6)) {
            orientation = orientation_of(data + at + 10, length - 8);
        } else if (is_frame(marker)) {
            if (length < 8 || width) return -1;
            height = data[at + 5] << 8 | data[at + 6];
            width = data[at + 7] << 8 | data[at + 8];
            components = data[at + 9];
            process = marker;
        } else if (!is_segment(marker)) {
            return -1;
        }
        at += 2 + length;
    }
    at += 2 + length;
    int64_t end = end_of_image(data, size, at);
    if (end < 0 || (components != 1 && components != 3 && components != 4)) return -1;
    if (process <= 0xC2 && (end - at) * 8 < (width + 7 >> 3) * (height + 7 >> 3)) return -1;
    return facts(JPEG, components, orientation, width, height);
}

static uint32_t crc32_table[256];

__attribute__((constructor)) static void make_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? crc >> 1 ^ 0xEDB88320u : crc >> 1;
        crc32_table[i] = crc;
    }
}

static uint32_t crc32(const uint8_t *p, int64_t n) {
    uint32_t crc = ~0u;
    for (; n > 0; n--) crc = crc >> 8 ^ crc32_table[(crc ^ *p++) & 255];
    return ~crc;
}

// Whether a chunk before the pixels is one that every reader takes as it is.
static int is_harmless(const uint8_t *kind, uint32_t length, int64_t *text) {
    if (!memcmp(kind, "tEXt", 4)) return (*text += length) <= MAX_TEXT;
    return (!memcmp(kind, "pHYs", 4) && length == 9) || (!memcmp(kind, "gAMA", 4) && length == 4) ||
           (!memcmp(kind, "sRGB", 4) && length == 1) || (!memcmp(kind, "cHRM", 4) && length == 32);
}

static int depth_fits(int depth, int colour) {
    static const uint8_t depths[7] = {1 | 2 | 4 | 8 | 16, 0, 8 | 16, 1 | 2 | 4 | 8, 8 | 16, 0, 8 | 16};
    return colour < 7 && (depth == 1 || depth == 2 || depth == 4 || depth == 8 || depth == 16) && depths[colour] & depth;
}

static int64_t png(const uint8_t *data, int64_t size) {
    if (size < 33 || memcmp(data + 8, "\0\0\0\rIHDR", 8) || data[26] || data[27]) return -1;
    int depth = data[24], colour = data[25], pixels = 0, palette = 0;
    if (!depth_fits(depth, colour) || crc32(data + 12, 17) != be32(data + 29)) return -1;
    int64_t text = 0;
    for (int64_t at = 33; at + 12 <= size;) {
        uint32_t length = be32(data + at);
        const uint8_t *kind = data + at + 4;
        if (at + 12 + (int64_t)length > size) return -1;
        int is_pixels = !memcmp(kind, "IDAT", 4), is_end = !memcmp(kind, "IEND", 4);
        if (!is_pixels && crc32(kind, 4 + (int64_t)length) != be32(kind + 4 + length)) return -1;
        if (is_end) {
            if (!pixels || (colour == 3 && !palette)) return -1;
            int64_t mode = colour == 0 && depth == 1 ? BIT : depth == 16 ? colour + SIXTEEN : colour;
            return facts(PNG, mode, 1, be32(data + 16), be32(data + 20));
        }
        if (!memcmp(kind, "PLTE", 4)) {
            if (pixels || palette || !length || length > 768 || length % 3) return -1;
            palette = 1;
        } else if (is_pixels) {
            pixels = 1;
        } else if (pixels || !is_harmless(kind, length, &text)) {
            return -1;
        }
        at += 12 + (int64_t)length;
    }
    return -1;
}

// width | height << 16 | orientation << 32 | mode << 40 | format << 48, or -1: somebody else has to look.
DL_EXPORT int64_t dl_image_facts(const uint8_t *data, int64_t size) {
    if (size >= 4 && data[0] == 0xFF && data[1] == 0xD8 && data[2] == 0xFF) return jpeg(data, size);
    if (size >= 8 && !memcmp(data, "\x89PNG\r\n\x1a\n", 8)) return png(data, size);
    return -1;
}
