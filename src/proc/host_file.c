/* The identity of a mapped file: its ELF build-id, or a digest of all its bytes where it has none
 * (models, caches, scripts). Equal size and modification time are believed, so that an unchanged
 * file costs one stat; a file that was copied or re-installed is told by what it contains.
 *
 * The ELF reader takes only what it needs (header, program headers, notes), checks every offset
 * against the size of the file and reads at most 64 KiB of notes. */
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/clean.h"
#include "base/fs.h"
#include "base/str.h"
#include "base/time.h"
#include "proc/host.h"

enum {
    NOTES_LIMIT_BYTES = 64 << 10,
    BUILD_ID_LIMIT_BYTES = 64,
    READ_BYTES = 1 << 20,
    HEX_BYTES = 2 * BUILD_ID_LIMIT_BYTES + 1,
};

/* Looks for the GNU build-id in a note segment. */
static bool find_in_notes(const unsigned char *notes, size_t bytes, size_t align, char *ret_hex)
{
    size_t at = 0;
    while (bytes - at >= sizeof(Elf64_Nhdr)) {
        Elf64_Nhdr note; /* the same layout for 32 bit */
        memcpy(&note, notes + at, sizeof(note));
        at += sizeof(note);
        size_t name_bytes = ((size_t)note.n_namesz + 3) & ~(size_t)3;
        size_t value_bytes = ((size_t)note.n_descsz + align - 1) & ~(align - 1);
        if (name_bytes > bytes - at || note.n_descsz > bytes - at - name_bytes)
            return false;
        if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 &&
            memcmp(notes + at, "GNU", 4) == 0 && note.n_descsz > 0 &&
            note.n_descsz <= BUILD_ID_LIMIT_BYTES) {
            rewarm_str_hex(notes + at + name_bytes, note.n_descsz, ret_hex);
            return true;
        }
        if (value_bytes > bytes - at - name_bytes)
            return false;
        at += name_bytes + value_bytes;
    }
    return false;
}

static bool read_notes(int fd, uint64_t file_bytes, const Elf64_Phdr *segment, char *ret_hex)
{
    if (segment->p_filesz == 0 || segment->p_filesz > NOTES_LIMIT_BYTES ||
        segment->p_offset > file_bytes || segment->p_filesz > file_bytes - segment->p_offset)
        return false;
    rewarm_auto_free unsigned char *notes = rewarm_mem_new(segment->p_filesz, 1);
    if (rewarm_fs_pread_full(fd, notes, segment->p_filesz, segment->p_offset, "notes", NULL) != 0)
        return false;
    return find_in_notes(notes, segment->p_filesz, segment->p_align == 8 ? 8 : 4, ret_hex);
}

/* The build-id of an ELF file of this machine's byte order and word size, as hex. */
static bool read_build_id(int fd, uint64_t file_bytes, char ret_hex[HEX_BYTES])
{
    Elf64_Ehdr header;
    if (file_bytes < sizeof(header) ||
        rewarm_fs_pread_full(fd, &header, sizeof(header), 0, "header", NULL) != 0)
        return false;
    if (memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64 ||
        header.e_ident[EI_DATA] != ELFDATA2LSB || header.e_phentsize != sizeof(Elf64_Phdr))
        return false;
    uint64_t table_bytes = (uint64_t)header.e_phnum * sizeof(Elf64_Phdr);
    if (header.e_phoff > file_bytes || table_bytes > file_bytes - header.e_phoff)
        return false;
    for (unsigned i = 0; i < header.e_phnum; i++) {
        Elf64_Phdr segment;
        if (rewarm_fs_pread_full(fd, &segment, sizeof(segment),
                                 header.e_phoff + i * sizeof(segment), "segments", NULL) != 0)
            return false;
        if (segment.p_type == PT_NOTE && read_notes(fd, file_bytes, &segment, ret_hex))
            return true;
    }
    return false;
}

/* XXH3-128 of the whole content, as hex. */
static int digest_file(int fd, const char *path, char ret_hex[HEX_BYTES], struct rewarm_error *err)
{
    XXH3_state_t *state = XXH3_createState();
    rewarm_auto_free void *buffer = rewarm_mem_new(READ_BYTES, 1);
    int result = 0;
    if (state == NULL)
        return rewarm_error_set(err, REWARM_E_NO_SPACE, 0, "memory is short");
    XXH3_128bits_reset(state);
    for (uint64_t offset = 0;;) {
        ssize_t got = pread(fd, buffer, READ_BYTES, (off_t)offset);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            result = rewarm_error_errno(err, "can't read %s", path);
        if (got <= 0)
            break;
        XXH3_128bits_update(state, buffer, (size_t)got);
        offset += (uint64_t)got;
    }
    XXH128_canonical_t canonical;
    XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state));
    XXH3_freeState(state);
    if (result == 0)
        rewarm_str_hex(canonical.digest, sizeof(canonical.digest), ret_hex);
    return result;
}

static int open_regular(const char *path, struct stat *ret_st, int *ret_fd,
                        struct rewarm_error *err)
{
    /* Not blocking: a FIFO may have taken the file's place. */
    rewarm_auto_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0 || fstat(fd, ret_st) != 0)
        return rewarm_error_errno(err, "can't open the mapped file %s", path);
    if (!S_ISREG(ret_st->st_mode))
        return rewarm_error_set(err, REWARM_E_MISFIT, 0, "%s is not a regular file", path);
    *ret_fd = rewarm_steal_fd(&fd);
    return 0;
}

static json_int_t mtime_ns(const struct stat *st)
{
    return (json_int_t)st->st_mtim.tv_sec * (json_int_t)REWARM_NS_PER_S + st->st_mtim.tv_nsec;
}

int rewarm_host_file_identity(const char *path, json_t **ret_identity, struct rewarm_error *err)
{
    struct stat st;
    rewarm_auto_fd int fd = -1;
    int result = open_regular(path, &st, &fd, err);
    if (result != 0)
        return result;
    char hex[HEX_BYTES];
    bool has_id = read_build_id(fd, (uint64_t)st.st_size, hex);
    if (!has_id)
        result = digest_file(fd, path, hex, err);
    if (result != 0)
        return result;
    json_t *identity =
        json_pack("{s:s, s:I, s:I, s:s}", "path", path, "bytes", (json_int_t)st.st_size, "mtime_ns",
                  mtime_ns(&st), has_id ? "build_id" : "xxh3", hex);
    if (identity == NULL)
        return rewarm_error_set(err, REWARM_E_SYSTEM, 0,
                                "can't record the mapped file %s: its name is not UTF-8", path);
    *ret_identity = identity;
    return 0;
}

int rewarm_host_file_check(const json_t *identity, struct rewarm_error *err)
{
    const char *path = json_string_value(json_object_get(identity, "path"));
    const json_t *bytes = json_object_get(identity, "bytes");
    const char *build_id = json_string_value(json_object_get(identity, "build_id"));
    const char *digest = json_string_value(json_object_get(identity, "xxh3"));
    if (path == NULL || !json_is_integer(bytes) || (build_id == NULL && digest == NULL))
        return rewarm_error_set(err, REWARM_E_CORRUPT, 0,
                                "the snapshot's record of a mapped file is damaged");
    struct stat st;
    if (stat(path, &st) != 0 && errno == ENOENT)
        return rewarm_error_set(
            err, REWARM_E_MISFIT, 0,
            "%s, which the snapshot maps, has gone: put it back, or freeze again", path);
    rewarm_auto_fd int fd = -1;
    int result = open_regular(path, &st, &fd, err);
    if (result != 0)
        return result;
    if ((json_int_t)st.st_size != json_integer_value(bytes))
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s has %lld bytes and had %lld at the freeze: put the old file "
                                "back, or freeze again",
                                path, (long long)st.st_size, (long long)json_integer_value(bytes));
    if (mtime_ns(&st) == json_integer_value(json_object_get(identity, "mtime_ns")))
        return 0;
    char hex[HEX_BYTES] = "";
    if (build_id != NULL)
        read_build_id(fd, (uint64_t)st.st_size, hex);
    else
        result = digest_file(fd, path, hex, err);
    if (result != 0)
        return result;
    if (strcmp(hex, build_id != NULL ? build_id : digest) != 0)
        return rewarm_error_set(err, REWARM_E_MISFIT, 0,
                                "%s is not the file that the snapshot maps (another %s): put the "
                                "old one back, or freeze again",
                                path, build_id != NULL ? "build" : "content");
    return 0;
}
