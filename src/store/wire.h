/* Little-endian fields at fixed places in a byte buffer. */
#ifndef REWARM_STORE_WIRE_H
#define REWARM_STORE_WIRE_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t rewarm_wire_get32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return le32toh(value);
}

static inline uint64_t rewarm_wire_get64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return le64toh(value);
}

static inline void rewarm_wire_put32(uint8_t *at, uint32_t value)
{
    value = htole32(value);
    memcpy(at, &value, sizeof(value));
}

static inline void rewarm_wire_put64(uint8_t *at, uint64_t value)
{
    value = htole64(value);
    memcpy(at, &value, sizeof(value));
}

#endif
